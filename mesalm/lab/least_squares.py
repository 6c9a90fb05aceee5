"""What an algorithm predicts in context: ridge regression, one gradient step, kernel regression.

Each predicts s_{t+1} from s_1..s_t by the pairs (s_{t'-1}, s_{t'}). With ``lag`` 0 all pairs up to t' = t are used,
s_0 = 0 being the first pair's input; with ``lag`` 1 the newest is left out, as in the authors' experiments. States
[B, T, D] in, predictions [B, T, D] out, in the dtype given. von Oswald et al. 2023 (arXiv 2309.05858), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def previous(states: Tensor) -> Tensor:
    """Return s_0, .., s_{T-1} with s_0 = 0, [B, T, D]."""
    return torch.cat((torch.zeros_like(states[:, :1]), states[:, :-1]), dim=1)


def lagged(sums: Tensor, lag: int) -> Tensor:
    """Move running sums [B, T, ...] to ``lag`` tokens later, zeros first."""
    if lag == 0:
        return sums
    return torch.cat((torch.zeros_like(sums[:, :lag]), sums[:, :-lag]), dim=1)


def running_gram(keys: Tensor, lag: int = 0) -> Tensor:
    """Return sum_{t' <= t} k_{t'} k_{t'}', [B, T, D, D]."""
    return lagged((keys.unsqueeze(-1) * keys.unsqueeze(-2)).cumsum(dim=1), lag)


def running_cross(values: Tensor, keys: Tensor, lag: int = 0) -> Tensor:
    """Return sum_{t' <= t} v_{t'} k_{t'}', [B, T, D, D]."""
    return lagged((values.unsqueeze(-1) * keys.unsqueeze(-2)).cumsum(dim=1), lag)


def ridge_predictions(states: Tensor, ridge: float, lag: int = 0) -> Tensor:
    """Predict by argmin_Phi 1/2 sum |s_{t'} - Phi s_{t'-1}|^2 + ridge/2 |Phi|^2, solved anew at each token."""
    keys = previous(states)
    gram = running_gram(keys, lag) + ridge * torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    solved = torch.linalg.solve(gram, states.unsqueeze(-1))
    return (running_cross(states, keys, lag) @ solved).squeeze(-1)


def gradient_predictions(states: Tensor, rate: float, lag: int = 0, start: Tensor | None = None) -> Tensor:
    """Predict after one gradient step at ``rate`` on the sum of squares, from ``start`` [D, D] (None: zeros)."""
    keys = previous(states)
    if start is None:
        return rate * (running_cross(states, keys, lag) @ states.unsqueeze(-1)).squeeze(-1)
    errors = states - keys @ start.mT
    step = (running_cross(errors, keys, lag) @ states.unsqueeze(-1)).squeeze(-1)
    return states @ start.mT + rate * step


def best_rate(states: Tensor, targets: Tensor, lag: int = 0) -> float:
    """Return the rate of the gradient step from zero whose mean loss is least; the loss is quadratic in it."""
    unit = gradient_predictions(states, 1.0, lag)
    return float((unit * targets).sum() / unit.square().sum())


def kernel_predictions(states: Tensor, sharpness: float) -> Tensor:
    """Predict the mean of s_{t'+1} over t' < t, weighted by softmax(sharpness s_{t'} . s_t); zero at t = 1."""
    length = states.shape[1]
    scores = sharpness * states @ states.mT
    later = torch.ones(length, length, dtype=torch.bool, device=states.device).triu()
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    weights = torch.nan_to_num(weights)  # the first token has nothing to look at
    following = torch.cat((states[:, 1:], torch.zeros_like(states[:, :1])), dim=1)
    return weights @ following


def position_losses(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared error summed over entries and averaged over sequences, [T] float64."""
    return 0.5 * (predictions - targets).double().square().sum(dim=-1).mean(dim=0)


def mean_loss(predictions: Tensor, targets: Tensor) -> float:
    """Return half the squared error summed over entries, averaged over sequences and positions."""
    return float(position_losses(predictions, targets).mean())

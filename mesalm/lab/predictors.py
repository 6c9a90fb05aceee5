"""In-context predictions of known algorithms from states [B, T, D]: pairs, kernel regression, and the loss.

Each algorithm predicts s_{t+1} from s_1..s_t, using the pairs (s_{t'-1}, s_{t'}) with s_0 = 0. With ``lag`` 0, it uses
all pairs up to t' = t; with ``lag`` 1, it leaves out the newest, as in the authors' experiments.
von Oswald et al. 2023 (arXiv 2309.05858), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mesalm.least_squares import best_rate, gradient_predictions


def previous(states: Tensor) -> Tensor:
    """Return s_0, .., s_{T-1} with s_0 = 0, [B, T, D]."""
    return torch.cat((torch.zeros_like(states[:, :1]), states[:, :-1]), dim=1)


def pairs(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys s_{t'-1}, values s_{t'} and queries s_t of regression on states."""
    return previous(states), states, states


def best_step(states: Tensor, targets: Tensor, lag: int = 0) -> Tensor:
    """Predict after one gradient step from zero, at the rate that minimises the mean loss."""
    unit = gradient_predictions(*pairs(states), 1.0, lag)
    return best_rate(unit, targets) * unit


def kernel_predictions(states: Tensor, sharpness: float) -> Tensor:
    """Predict the mean of s_{t'+1} over t' < t, weighted by softmax(sharpness s_{t'} . s_t); zero at t = 1."""
    length = states.shape[1]
    scores = sharpness * states @ states.mT
    later = torch.ones(length, length, dtype=torch.bool, device=states.device).triu()
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    weights = torch.nan_to_num(weights)  # the first token has no predecessors
    following = torch.cat((states[:, 1:], torch.zeros_like(states[:, :1])), dim=1)
    return weights @ following


def position_losses(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared error summed over entries and averaged over sequences, [T] float64."""
    return 0.5 * (predictions - targets).double().square().sum(dim=-1).mean(dim=0)


def mean_loss(predictions: Tensor, targets: Tensor) -> float:
    """Return half the squared error summed over entries, averaged over sequences and positions."""
    return float(position_losses(predictions, targets).mean())

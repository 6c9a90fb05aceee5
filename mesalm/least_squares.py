"""Predictions by regression on the pairs seen so far: ridge regression, and one step of gradient descent.

The pairs are keys [B, T, D] and values [B, T, E]. The prediction for the query at position t uses the pairs up to
t - ``lag``. Queries are [B, T, D], predictions [B, T, E], in the given dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def running_gram(keys: Tensor, lag: int = 0) -> Tensor:
    """Return the sum of k_i k_i^T over i <= t - lag, [B, T, D, D]."""
    return running_cross(keys, keys, lag)


def running_cross(values: Tensor, keys: Tensor, lag: int = 0) -> Tensor:
    """Return the sum of v_i k_i^T over i <= t - lag, [B, T, E, D]."""
    sums = (values.unsqueeze(-1) * keys.unsqueeze(-2)).cumsum(dim=1)
    lag = min(lag, sums.shape[1])
    return torch.cat((torch.zeros_like(sums[:, :lag]), sums[:, : sums.shape[1] - lag]), dim=1) if lag else sums


def ridge_predictions(keys: Tensor, values: Tensor, queries: Tensor, ridge: float, lag: int = 0) -> Tensor:
    """Predict with the map W that minimises 1/2 sum |v_i - W k_i|^2 + ridge/2 |W|^2, solved at each position.

    Ridge 0 is least squares, with the minimum-norm map if it is not unique; it needs float64.
    """
    gram = running_gram(keys, lag)
    if ridge > 0:
        eye = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        solved = torch.linalg.solve(gram + ridge * eye, queries.unsqueeze(-1))
    else:
        # 1e-10: far below the least eigenvalue of a full gram, far above the rounding of a deficient one
        solved = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ queries.unsqueeze(-1)
    return (running_cross(values, keys, lag) @ solved).squeeze(-1)


def gradient_predictions(
    keys: Tensor, values: Tensor, queries: Tensor, rate: float | Tensor, lag: int = 0, start: Tensor | None = None
) -> Tensor:
    """Predict after one gradient step on 1/2 sum |v_i - W k_i|^2 from ``start`` [E, D] (None: zeros).

    ``rate`` is one number, or one for each position [T, 1].
    """
    errors = values if start is None else values - keys @ start.mT
    step = rate * (running_cross(errors, keys, lag) @ queries.unsqueeze(-1)).squeeze(-1)
    return step if start is None else queries @ start.mT + step


def best_rate(steps: Tensor, targets: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return the factor of ``steps`` [B, T, E] whose squared error is least over ``dim`` (None: all); 0 for no step."""
    size = steps.square().sum(dim)
    return torch.where(size > 0, (steps * targets).sum(dim) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)

"""What regression on the pairs of one sequence predicts: the oracles and baselines of in-context regression.

The pairs (x_i, y_i) of a sequence share one unknown map W. For y ~ W x + N(0, sigma^2), entries of W ~ N(0, 1 / d),
the best prediction of y_k from the pairs before it is ridge regression with lambda = d sigma^2 (its posterior mean).
All in float64.
"""

from __future__ import annotations

import torch

RIDGES = [10.0**power for power in range(-6, 3)]
"""Ridges that `best_ridge` tries."""


def ridge_predictions(x: torch.Tensor, y: torch.Tensor, ridge: float) -> torch.Tensor:
    """Predict y_k at x_k from the pairs before it: G (H + ridge)^-1 x_k, H = sum x_i x_i^T, G = sum y_i x_i^T.

    x [B, P, D], y [B, P, O]; returns [B, P, O] float64. Ridge 0 is least squares, the map of least norm where several
    fit, as its limit is.
    """
    x, y = x.double(), y.double()
    gram, cross = _before(x, x), _before(y, x)
    if ridge > 0:
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        solved = torch.linalg.solve(gram + ridge * eye, x.unsqueeze(-1))
    else:
        # 1e-10: far below the least eigenvalue of a full gram, far above the rounding of a deficient one
        solved = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ x.unsqueeze(-1)
    return (cross @ solved).squeeze(-1)


def gradient_predictions(x: torch.Tensor, y: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Predict y_k by one step of gradient descent from W = 0, whose rate [P] depends on the number of pairs."""
    x = x.double()
    return rates.unsqueeze(-1) * (_before(y.double(), x) @ x.unsqueeze(-1)).squeeze(-1)


def best_rates(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return for each number of pairs the rate whose one step has the least squared error on these sequences, [P]."""
    steps = gradient_predictions(x, y, torch.ones(x.shape[1], dtype=torch.float64))
    size = steps.square().sum((0, 2))
    return torch.where(size > 0, (steps * y.double()).sum((0, 2)) / size.clamp(min=1e-300), 0.0)


def best_ridge(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the one of `RIDGES` whose predictions have the least squared error on these sequences."""
    return min(RIDGES, key=lambda ridge: float((ridge_predictions(x, y, ridge) - y).square().sum()))


def last_states(x: torch.Tensor, count: int) -> torch.Tensor:
    """Lay each state's ``count`` last ones side by side, newest first; the first count - 1 places hold zeros alone.

    x [B, P, D]; returns [B, P, count D]. Where a system of n hidden entries is seen through D of them, the next
    observation is a linear map of the last n / D ones (von Oswald et al. 2023, section 4.4); where there are fewer
    it is not, and a pair that is cut off would spoil the regression.
    """
    windows = x.unfold(1, count, 1).flip(-1).transpose(-1, -2).flatten(2)
    return torch.nn.functional.pad(windows, (0, 0, count - 1, 0))


def _before(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return sums of left_i right_i^T over i < k, [B, P, L, R]."""
    products = left.unsqueeze(-1) * right.unsqueeze(-2)
    return products.cumsum(1) - products

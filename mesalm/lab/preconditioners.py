"""Iterations that approximate an inverse matrix: the truncated Neumann series, and a second-order one with momentum.

Matrices M [..., D, D], symmetric positive definite. von Oswald et al. 2023 (arXiv 2309.05858), proposition 2 and
appendix C.3; coefficients per step are the "Chebyshev" speed-up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mesalm.lab.predictors import previous
from mesalm.least_squares import running_cross, running_gram


class Coefficients(NamedTuple):
    """Step sizes and momenta, one per step, [K] each."""

    steps: Tensor
    momenta: Tensor


def neumann_inverse(matrix: Tensor, scale: float, depth: int) -> Tensor:
    """Return scale^-1 sum_{j < depth} (I - M / scale)^j by the recursion X <- X + (I - M X) / scale."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    inverse = eye / scale
    for _ in range(depth - 1):
        inverse = inverse + (eye - matrix @ inverse) / scale
    return inverse


def momentum_inverse(matrix: Tensor, coefficients: Coefficients) -> Tensor:
    """Return the K-step approximation of M^-1 with a step size and a momentum per step.

    A = M / |M|_F; term <- term (I - step A), X <- X + term + momentum (X - X before), from I; then X / |M|_F.
    """
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    scaled = matrix / norm
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    inverse, before, term = eye, eye, eye
    for step, momentum in zip(*coefficients, strict=True):
        term = term - step * (term @ scaled)
        inverse, before = inverse + term + momentum * (inverse - before), inverse
    return inverse / norm


def momentum_predictions(states: Tensor, coefficients: Coefficients, ridge: float, lag: int) -> Tensor:
    """Predict s_{t+1} by G_t X s_t, where X approximates the inverse of the inputs' Gram matrix plus the ridge."""
    keys = previous(states)
    eye = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    inverse = momentum_inverse(running_gram(keys, lag) + ridge * eye, coefficients)
    return (running_cross(states, keys, lag) @ (inverse @ states.unsqueeze(-1))).squeeze(-1)


def learned_coefficients(states: Tensor, targets: Tensor, depth: int, ridge: float, lag: int) -> Coefficients:
    """Return the coefficients with the lowest mean loss, found by L-BFGS from steps 1 and momenta 0, float64.

    states and targets are [B, T, D].
    """
    states = states.double()  # so that the search converges to the minimum
    values = torch.zeros(2, depth, dtype=states.dtype, device=states.device)
    values[0] = 1.0
    values.requires_grad_()
    search = torch.optim.LBFGS([values], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        predictions = momentum_predictions(states, Coefficients(values[0], values[1]), ridge, lag)
        cost = 0.5 * (predictions - targets).square().sum(-1).mean()
        cost.backward()
        return cost

    # LBFGS.step takes the loss as a closure, which torch releases type differently
    search.step(loss)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
    return Coefficients(values[0].detach(), values[1].detach())

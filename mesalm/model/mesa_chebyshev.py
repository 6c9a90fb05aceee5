"""Solve the systems of many chunks by Chebyshev iteration on an interval that contains their eigenvalues.

Since `mesa_problems` has scaled the ridge to the identity, the eigenvalues of H_t + I are in [1, kappa], where kappa
follows from the Frobenius norm of H_t, which costs two products of a chunk's keys. With h = (kappa - 1) / 2 and
Y_t = I - H_t / h, whose spectrum is in [-1, 1], the best polynomial of m terms is

    x_t = sum'_{j < m} e_j T_j(Y_t) b_t,   e_j = 2 rho^j (1 - rho^{2 (m - j)}) / (sqrt(kappa) (1 + rho^{2 m})),

where rho = (sqrt(kappa) - 1) / (sqrt(kappa) + 1) = tanh(log(kappa) / 4) and ' halves the first term. Its relative error
is at most 2 rho^m / (1 + rho^{2 m}). Coefficients and bound are those of `mesa_shared` at log r = -log(kappa), and both
share one recurrence. Unlike conjugate gradients it needs no inner products and no stopping test, so short memories,
whose kappa is small, take a few products more but less time. docs/solver.md derives this.
Source: Golub and Varga 1961.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_states import apply_mask, repeat_rows
from .mesa_problems import Problems
from .mesa_shared import coefficients, products_needed, sum_series

NARROWEST = 1e-6
"""Lower bound on kappa - 1: the interval may be wider than the spectrum, but not empty."""
MARGIN = 1e-5
"""Relative margin added to a norm for the rounding of its sums."""


class BoundedSystems(NamedTuple):
    """The matrices of P problems with M rows each, as the operator 2 Y = 2 - 2 H_t / h of the recurrence.

    gram `[P, K, K]` and mask `[P, C, C]` are as in `mesa_cg.Systems`; keys `[P, K, C]` has the keys as columns; written
    `[P, C, K]` and start `[P, M, 1]` are multiplied by -2 / h.
    """

    gram: Tensor
    keys: Tensor
    written: Tensor
    mask: Tensor
    start: Tensor

    def take(self, index: Tensor | slice) -> BoundedSystems:
        """Select problems."""
        return BoundedSystems(*(operand[index] for operand in self))

    def advance(self, v: Tensor, last: Tensor, scores: Tensor, out: Tensor, *, beta: float, alpha: float) -> Tensor:
        """Write beta * last + alpha * 2 Y v `[P, M, K]` to `out`, which may be `last`; scores `[P, M, C]`: buffer."""
        apply_mask(torch.bmm(v, self.keys, out=scores), self.mask)
        torch.baddbmm(last, scores, self.written, beta=beta, alpha=alpha, out=out)
        return out.baddbmm_(v * self.start, self.gram, alpha=alpha).add_(v, alpha=2.0 * alpha)


def largest_norm(made: Problems, index: Tensor) -> Tensor:
    """Return the largest Frobenius norm of H_t over the tokens of each problem in `index` `[P]`: `[P]`."""
    gram, key, gate = (x.index_select(0, index) for x in (made.gram, made.key, made.input_gate))
    mask, start = made.decay.mask.index_select(0, index), made.decay.start.index_select(0, index)
    written = key * gate
    overlap = torch.bmm(written, key.mT)
    inside = torch.bmm(mask, overlap * overlap.mT).mul_(mask).sum(-1, keepdim=True)
    across = torch.bmm(mask, (torch.bmm(key, gram) * written).sum(-1, keepdim=True))
    carried = gram.square().sum((1, 2)).view(-1, 1, 1)
    square = inside + start * (2.0 * across + start * carried)
    return square.amax((1, 2)).clamp(min=0.0).sqrt()


def terms_needed(norm: Tensor, tolerance: Tensor) -> Tensor:
    """Return the terms m `[P]` (float64) for an error bound of at most `tolerance` `[P]`, given norms `[P]` of H_t."""
    return products_needed(_width(norm).log1p(), tolerance)


def iterate(made: Problems, index: Tensor, norm: Tensor, rhs: Tensor, terms: list[int]) -> Tensor:
    """Solve the problems in `index` `[P]` for their rows rhs `[P, M, K]`; norm `[P]` comes from `largest_norm`.

    terms: the number of terms of each problem's polynomial, in descending order.
    """
    dtype = rhs.dtype
    width = _width(norm).view(-1, 1, 1)
    factor = (-4.0 / width).to(dtype)  # -2 / h
    gram, key, gate = (x.index_select(0, index) for x in (made.gram, made.key, made.input_gate))
    mask, start = made.decay.mask.index_select(0, index), made.decay.start.index_select(0, index)
    interval = BoundedSystems(
        gram, key.mT.contiguous(), key * (gate * factor), mask, repeat_rows(start * factor, rhs.shape[1])
    )
    degree = torch.tensor(terms, device=rhs.device)
    e = coefficients(-width.squeeze(-1).log1p(), degree, dtype).mul_(2.0)
    return sum_series(interval, rhs, e, terms, rhs.new_empty(*rhs.shape[:2], key.shape[1]))


def _width(norm: Tensor) -> Tensor:
    """Return kappa - 1 (float64)."""
    return norm.double().mul(1.0 + MARGIN).clamp(min=NARROWEST)

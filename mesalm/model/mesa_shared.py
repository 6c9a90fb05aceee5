"""Solve the systems of a chunk with one factorisation that all its tokens share.

With the ridge scaled to the identity, g_t the decay since the chunk began, g* one frozen decay and
r_t = g* / g_t, the matrix of token t is

    H_t + I = (1 / r_t) [ A + sum_{s <= t} w_s w_s' + (r_t - 1) I ],   A = g* H_0 + I,   w_s = sqrt(beta_s r_s) k_s.

Only the last term is not a sum that all tokens share. With W the matrix of rows w_s, S = I + W A^-1 W' = L L' and the
gains U = L^-1 W A^-1 (the rank-one updates of Sherman and Morrison 1950, all at once),

    P_t = (A + sum_{s <= t} w_s w_s')^-1 = A^-1 - sum_{s <= t} u_s u_s'

is one causal product for all tokens. The solution x_t = (P_t^-1 + r_t - 1)^-1 r_t b_t is a function of P_t, whose
spectrum is in [0, 1]. So x is a sum of Chebyshev polynomials in Y_t = 2 P_t - 1 with coefficients in closed form:
with rho_t = (1 - sqrt(r_t)) / (1 + sqrt(r_t)) and m products,

    x_t = 2 P_t sum'_{j < m} e_j T_j(Y_t) b_t,   e_j = sqrt(r) rho^j (1 - rho^{2 (m - j)}) / (1 + rho^{2 m}),

where ' halves the first term. The relative error is at most 2 |rho|^m / (1 + rho^{2 m}), whatever the keys are.
docs/solver.md derives this. After a restart inside a chunk, A is the identity for the tokens that follow, with
a reference decay of their own; the same factorisation serves them through a mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_states import apply_mask, is_restart, repeat_rows


class Reference(NamedTuple):
    """The reference decays g* of P problems of C tokens.

    log_ratio `[P, C]` (float64): log r_t; g* is the middle of the range between two restarts. start `[P]` (float64):
    log g*. reach `[P]` (float64): the largest |log r_t|. restarts `[P, C]` (int64): the number so far in this chunk.
    """

    log_ratio: Tensor
    start: Tensor
    reach: Tensor
    restarts: Tensor

    def take(self, index: Tensor | slice) -> Reference:
        """Select problems."""
        return Reference(*(field[index] for field in self))


def freeze_decay(log_forget: Tensor, dtype: torch.dtype) -> Reference:
    """Choose the reference decays for chunks with log gates `[P, C]` (float64)."""
    C = log_forget.shape[-1]
    restart = is_restart(log_forget, dtype)
    total = log_forget.masked_fill(restart, 0.0).cumsum(-1)
    place = torch.arange(C, device=total.device).expand_as(restart)
    begins = torch.where(restart, place, 0).cummax(-1).values
    later = torch.where(restart, place, C).flip(-1).cummin(-1).values.flip(-1)
    ends = torch.nn.functional.pad(later[:, 1:], (0, 1), value=C) - 1
    middle = 0.5 * (total.gather(-1, begins) + total.gather(-1, ends))
    log_ratio = middle - total
    return Reference(log_ratio, middle[:, 0], log_ratio.abs().amax(-1), restart.cumsum(-1))


def products_needed(reach: Tensor, tolerance: Tensor) -> Tensor:
    """Return the number of products `[P]` (float64) for an error bound of at most `tolerance` `[P]`."""
    digits = -torch.log(torch.tanh(0.25 * reach))  # natural digits per product; 0 where tanh rounds to 1
    return (torch.log(2.0 / tolerance) / digits.clamp(min=1e-300)).ceil().clamp(min=1.0)


def coefficients(log_ratio: Tensor, degree: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the coefficients e_j `[J, P, C, 1]` of the Chebyshev sum, zero beyond a problem's degree.

    log_ratio `[P, C]` (float64); degree `[P]` (int64): the number of products m, whose maximum is J.
    """
    m = degree.unsqueeze(-1)
    rho = torch.tanh(-0.25 * log_ratio).to(dtype)
    j = torch.arange(int(degree[0]), device=degree.device).view(-1, 1, 1)
    left = (m - j).clamp(min=0)
    e = torch.exp(0.5 * log_ratio).to(dtype) * rho**j * (1.0 - rho ** (2 * left)) / (1.0 + rho ** (2 * m))
    e[0] *= 0.5
    return e.unsqueeze(-1)


class Factor(NamedTuple):
    """The factorisation of P problems, stored for the operator 2 Y = 4 P - 2 of the recurrence.

    carried `[P, K, K]` = 4 A^-1 - 2, gains `[P, C, K]` = 2 U. mask `[P, C, C]` is 1 for pairs of tokens without a
    restart between them and first `[P, C, 1]` is 1 before the chunk's first restart; both None without restarts.
    """

    carried: Tensor
    gains: Tensor
    mask: Tensor | None
    first: Tensor | None

    def take(self, index: Tensor | slice) -> Factor:
        """Select problems."""
        mask = None if self.mask is None else self.mask[index]
        first = None if self.first is None else self.first[index]
        return Factor(self.carried[index], self.gains[index], mask, first)

    def advance(self, v: Tensor, last: Tensor, scores: Tensor, out: Tensor, *, beta: float, alpha: float) -> Tensor:
        """Write beta * last + alpha * 2 Y v `[P, M, K]` to `out`, which may be `last`; scores `[P, M, C]`: buffer."""
        torch.bmm(v, self.gains.mT, out=scores)
        P, M, C = scores.shape
        if self.mask is None or self.first is None:
            scores.view(P, M // C, C, C).tril_()
            torch.baddbmm(last, v, self.carried, beta=beta, alpha=alpha, out=out)
        else:
            apply_mask(scores, self.mask)
            kept = v * repeat_rows(self.first, M)
            torch.baddbmm(last, kept, self.carried, beta=beta, alpha=alpha, out=out)
            out.add_(v - kept, alpha=2.0 * alpha)
        return out.baddbmm_(scores, self.gains, alpha=-alpha)


def restart_masks(restarts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `mask` and `first` of `Factor` for counts of restarts `[P, C]`."""
    same = restarts.unsqueeze(-1) == restarts.unsqueeze(-2)
    return same.tril().to(dtype), (restarts == 0).to(dtype).unsqueeze(-1)


def factorise(gram: Tensor, key: Tensor, input_gate: Tensor, reference: Reference, restarting: bool) -> Factor:
    """Factor problems: gram `[P, K, K]` at the chunk's start, key `[P, C, K]`, input_gate `[P, C, 1]`.

    restarting: whether any of the chunks has a restart. If rounding makes A not positive definite, the first entry of
    `carried` is NaN.
    """
    dtype, K = gram.dtype, gram.shape[-1]
    matrix = gram * reference.start.exp().to(dtype)[:, None, None]
    matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
    lower, info = torch.linalg.cholesky_ex(matrix)
    identity = torch.eye(K, dtype=dtype, device=gram.device).expand_as(matrix)
    root = torch.linalg.solve_triangular(lower, identity, upper=False)  # A^-1 = root' root
    written = key * (input_gate * reference.log_ratio.exp().to(dtype).unsqueeze(-1)).sqrt()
    half = torch.bmm(written, root.mT)
    whole = torch.bmm(half, root.mul_(2.0))
    mask = first = None
    if restarting:
        mask, first = restart_masks(reference.restarts, dtype)
        half, whole = torch.where(first > 0, half, written), torch.where(first > 0, whole, 2.0 * written)
    inner = torch.bmm(half, half.mT)
    if mask is not None:
        inner.mul_(mask + mask.mT)  # the diagonal is counted twice here and halved below
        inner.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    small, _ = torch.linalg.cholesky_ex(inner)
    gains = torch.linalg.solve_triangular(small, whole, upper=False)
    carried = torch.bmm(root.mT, root)
    carried.diagonal(dim1=-2, dim2=-1).sub_(2.0)
    carried[:, 0, 0].masked_fill_(info != 0, torch.nan)
    return Factor(carried, gains, mask, first)


def apply_series(factor: Factor, rhs: Tensor, log_ratio: Tensor, degree: list[int]) -> Tensor:
    """Solve for rows rhs `[P, M, K]` by a series of `degree` products per problem; degrees are in descending order."""
    m = torch.tensor(degree, device=rhs.device)
    scores = rhs.new_empty(*rhs.shape[:2], factor.gains.shape[1])
    total = sum_series(factor, rhs, coefficients(log_ratio, m, rhs.dtype), degree, scores)
    return factor.advance(total, total, scores, torch.empty_like(rhs), beta=1.0, alpha=0.5)


def sum_series(operator: Any, rhs: Tensor, e: Tensor, degree: list[int], scores: Tensor) -> Tensor:
    """Sum e_j T_j(Y_t) b_t over j for rows rhs `[P, M, K]`, with one product less than the number of terms.

    operator: a `Factor`, or another record with `take` and `advance`; e `[J, P, C or 1, 1]`; degree: the number of
    terms of each problem, in descending order; scores `[P, M, C]`: a work buffer.
    """
    M = rhs.shape[1]
    total = rhs * _by_row(e[0], M)
    v, last = rhs, rhs
    for j in range(1, degree[0]):
        live = sum(d > j for d in degree)
        if live < len(v):
            operator, v, last, scores = operator.take(slice(live)), v[:live], last[:live], scores[:live]
        # T_1 = Y v; then T_{j + 1} = 2 Y T_j - T_{j - 1}, written over T_{j - 1} unless that is the caller's rhs
        out = last if j > 2 else torch.empty_like(v)
        beta, alpha = (-1.0, 1.0) if j > 1 else (0.0, 0.5)
        operator.advance(v, last, scores, out, beta=beta, alpha=alpha)
        v, last = out, v
        total[:live].addcmul_(v, _by_row(e[j, :live], M))
    return total


def _by_row(e: Tensor, rows: int) -> Tensor:
    return e if e.shape[1] == 1 else repeat_rows(e, rows)

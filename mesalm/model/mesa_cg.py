"""Solve the systems of many chunks together by conjugate gradients (Hestenes and Stiefel 1952).

The system of token t is (H_t + I) x_t = b_t. H_t is applied chunk by chunk as in `chunk_states`: a step costs
one product with the chunk's start state and two with its keys, for all tokens of the chunk together. Since
`mesa_problems` has scaled the ridge to the identity, no eigenvalue is below 1 and

    |error| <= |residual|        in these units, so the stopping rule guarantees the tolerance.

All guards are relative and every right-hand side is first scaled to unit norm, so the solution is linear in
b over the whole range of its dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_states import apply_mask

REFINEMENTS = 4
"""Maximum restarts from a recomputed residual, after which a system is considered limited by its dtype."""
BLOCK_NUMBERS = 1 << 22
"""Numbers in the operands of a block of problems on a CPU, so that a block roughly fits the cache between steps."""


class Buffers(NamedTuple):
    """Work buffers that every step overwrites: product and scratch `[P, M, K]`, scores `[P, M, C]`."""

    product: Tensor
    scratch: Tensor
    scores: Tensor

    @classmethod
    def like(cls, x: Tensor, key: Tensor) -> Buffers:
        """Allocate for rows x `[P, M, K]` and keys `[P, C, K]`."""
        return cls(torch.empty_like(x), torch.empty_like(x), x.new_empty(*x.shape[:2], key.shape[1]))

    def first(self, problems: int) -> Buffers:
        """Return the buffers of the first `problems` problems."""
        return Buffers(*(buffer[:problems] for buffer in self))


class Systems(NamedTuple):
    """The operands of P problems with M rows each; see `chunk_states` for the notation.

    gram `[P, K, K]` (float64 where float32 would be too coarse), key and written (key times input gate) `[P, C, K]`,
    mask `[P, C, C]`, start `[P, M, 1]`, root `[P, 1, K]` (1 / sqrt(ridge), the factor that converts x to the caller's
    units).
    """

    gram: Tensor
    key: Tensor
    written: Tensor
    mask: Tensor
    start: Tensor
    root: Tensor

    def apply(self, x: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Multiply rows `[P, M, K]` by their token's H_t + I; the result is written to `buffers.product` if given."""
        if buffers is None:
            buffers = Buffers.like(x, self.key)
        scores = apply_mask(torch.bmm(x, self.key.mT, out=buffers.scores), self.mask)
        if self.gram.dtype == x.dtype:
            carried = torch.bmm(x, self.gram, out=buffers.product)
        else:
            carried = torch.bmm(x.to(self.gram.dtype), self.gram)
        product = torch.addcmul(x, carried, self.start, out=buffers.product)
        return product.baddbmm_(scores, self.written)

    def take(self, index: Tensor | slice) -> Systems:
        """Select problems."""
        if isinstance(index, slice):
            return Systems(*(operand[index] for operand in self))
        return Systems(*(operand.index_select(0, index) for operand in self))


class Solution(NamedTuple):
    """The solutions x `[P, M, K]` and the steps taken by each row `[P, M]` (int32)."""

    x: Tensor
    steps: Tensor


def conjugate_gradients(
    systems: Systems,
    rhs: Tensor,
    tolerance: float,
    max_steps: int,
    *,
    refinements: int = REFINEMENTS,
    block_numbers: int = BLOCK_NUMBERS,
) -> Solution:
    """Solve every row of rhs `[P, M, K]` to a relative error of x of at most `tolerance`.

    The error is the 2-norm in the caller's units, x / sqrt(ridge). A row stops when the bound certifies it, after
    `max_steps`, or when its dtype allows no further progress. Rows of zeros take no steps.
    """
    P, M, K = rhs.shape
    x = torch.empty_like(rhs)
    steps = torch.empty(P, M, dtype=torch.int32, device=rhs.device)
    size = P
    if rhs.device.type == "cpu" and P:
        C = systems.key.shape[1]
        size = max(4, block_numbers // (K * K + 2 * C * K + C * C + M * (4 * K + C)))
    for first in range(0, P, max(size, 1)):
        block = slice(first, first + size)
        x[block], steps[block] = _solve_block(systems.take(block), rhs[block], tolerance, max_steps, refinements)
    return Solution(x, steps)


def _solve_block(systems: Systems, rhs: Tensor, tolerance: float, max_steps: int, refinements: int) -> Solution:
    """Scale the rows to unit norm, solve, restart rows that rounding may have affected, and scale back."""
    tiny = torch.finfo(rhs.dtype).tiny
    largest = rhs.abs().amax(-1, keepdim=True)
    unit = rhs / largest.clamp(min=tiny)
    norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    unit.div_(norm.clamp(min=tiny))
    limit = tolerance / (1.0 + tolerance)
    live = norm.squeeze(-1) > 0
    steps = torch.zeros_like(live, dtype=torch.int32)
    rows = _Rows(torch.zeros_like(unit), unit.clone(), live, steps, steps > 0)
    rows = _iterate(systems, rows, limit, max_steps)

    last = torch.full_like(norm.squeeze(-1), torch.inf)
    for _ in range(refinements):
        index = rows.doubt.any(-1).nonzero().squeeze(-1)
        if index.numel() == 0:
            break
        part, again = systems.take(index), rows.take(index)
        residual = unit.index_select(0, index) - part.apply(again.x)
        size = torch.linalg.vector_norm(residual, dim=-1)
        # A restart that does not halve the true residual will not reach the tolerance either.
        worth = again.doubt & (size > _allowed(part, again.x, limit)) & (size < 0.5 * last[index])
        last[index] = size
        rows.put(index, _iterate(part, _Rows(again.x, residual, worth, again.steps, worth), limit, max_steps))
        rows.doubt[index] = worth
    return Solution(rows.x.mul_(norm).mul_(largest), rows.steps)


class _Rows(NamedTuple):
    """The state of an iteration: x and residual r `[P, M, K]`, and per row `[P, M]` whether it is still
    active, its steps so far, and whether rounding may have made its recursive residual too small."""

    x: Tensor
    r: Tensor
    live: Tensor
    steps: Tensor
    doubt: Tensor

    def take(self, index: Tensor) -> _Rows:
        """Select problems."""
        return _Rows(*(field.index_select(0, index) for field in self))

    def put(self, index: Tensor, part: _Rows) -> None:
        """Write the results of selected problems back in place."""
        for field, values in zip(self, part, strict=True):
            field.index_copy_(0, index, values)


def _allowed(systems: Systems, x: Tensor, limit: float) -> Tensor:
    """Return the residual norm `[P, M]` that certifies the tolerance at x.

    In the caller's units |error| <= |residual| * (largest root), and |x| - |error| is a lower bound on the norm of the
    exact solution.
    """
    length = torch.linalg.vector_norm(x * systems.root, dim=-1)
    return length.mul_(limit / systems.root.amax(-1))


def _iterate(systems: Systems, rows: _Rows, limit: float, max_steps: int) -> _Rows:
    """Run conjugate gradients from x with residual r, dropping problems once all their rows are done."""
    whole: _Rows | None = None  # all problems, once some have been dropped from the arrays below
    where = torch.arange(rows.x.shape[0], device=rows.x.device)
    x, r, live, steps, doubt = rows
    p, rr = r.clone(), torch.linalg.vector_norm(r, dim=-1).square_()
    steepest = torch.zeros_like(rr)  # the largest 1 / alpha: a lower bound on the norm of H_t + I
    info = torch.finfo(rr.dtype)
    buffers = Buffers.like(r, systems.key)
    check_every = 1 if r.device.type == "cpu" else 4
    for step in range(1, max_steps + 1):
        product = systems.apply(p, buffers)
        curvature = torch.mul(p, product, out=buffers.scratch).sum(-1)
        # A residual far below any tolerance is done, and its square would underflow.
        live = live & (curvature > 0) & (rr > 1e6 * info.tiny) & (steps < max_steps)
        alpha = torch.where(live, rr / curvature, 0.0)
        steepest = torch.maximum(steepest, torch.where(live, curvature / rr, 0.0))
        steps = steps + live
        x.addcmul_(alpha.unsqueeze(-1), p)
        r.addcmul_(alpha.unsqueeze(-1), product, value=-1)
        new = torch.where(live, torch.linalg.vector_norm(r, dim=-1).square_(), rr)
        torch.addcmul(r, p, torch.where(live, new / rr, 0.0).unsqueeze(-1), out=p)
        rr = new
        if step % check_every:
            continue
        # |x| <= |b| = 1 here, so a row with a residual above `limit` cannot be done. Only problems without such a
        # row get the full test, each on its own: a problem's result must not depend on the others.
        ready = (~live | (rr <= limit * limit)).all(-1, keepdim=True)
        if not bool(ready.any()):
            continue
        allowed = _allowed(systems, x, limit)
        passed = ready & (rr.sqrt() <= 0.75 * allowed)
        # The recursive residual drifts from the true one by a few rounding errors of |H_t + I| |x|.
        drift = 4.0 * info.eps * steepest * torch.linalg.vector_norm(x, dim=-1)
        doubt = doubt | (passed & (drift > 0.25 * allowed))
        live = live & ~passed
        problems = live.any(-1)
        left = int(problems.sum())
        if left == 0:
            break
        if left * 4 > 3 * problems.shape[0]:
            continue
        rows = _Rows(x, r, live, steps, doubt)
        if whole is None:
            whole = rows
        else:
            whole.put(where, rows)
        kept = problems.nonzero().squeeze(-1)
        x, r, live, steps, doubt = rows.take(kept)
        p, rr, steepest = (field.index_select(0, kept) for field in (p, rr, steepest))
        where, systems, buffers = where[kept], systems.take(kept), buffers.first(left)
    rows = _Rows(x, r, live, steps, doubt)
    if whole is None:
        return rows
    whole.put(where, rows)
    return whole

"""Solve the systems of many chunks at once by conjugate gradients.

The system of token t is (H_t + I) x_t = b_t, with H_t read off the chunk as in `chunk_states`: a step costs
one product with the chunk's start state and two with its keys, for all tokens of the chunk together. The
ridge has been scaled to the identity (`mesa_chunked` does it), so no eigenvalue is below 1 and

    |error| <= |residual|        in these units, which is what makes the stopping rule a promise.

All guards are relative and every right-hand side is scaled to unit norm first: the solution is linear in b
over the whole range of its dtype. Conjugate gradients: Hestenes and Stiefel 1952.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_states import apply_mask

REFINEMENTS = 4
"""Restarts from a recomputed residual before a system counts as stuck at the limit of its dtype."""
BLOCK_NUMBERS = 1 << 22
"""Numbers in the operands of a block of problems on a CPU: a block should stay near the cache between steps."""


class Buffers(NamedTuple):
    """Hold the memory that every step writes into: product and scratch `[P, M, K]`, scores `[P, M, C]`."""

    product: Tensor
    scratch: Tensor
    scores: Tensor

    @classmethod
    def like(cls, x: Tensor, key: Tensor) -> Buffers:
        """Allocate for rows x `[P, M, K]` and keys `[P, C, K]`."""
        return cls(torch.empty_like(x), torch.empty_like(x), x.new_empty(*x.shape[:2], key.shape[1]))

    def first(self, problems: int) -> Buffers:
        """Keep the memory of the first problems."""
        return Buffers(*(buffer[:problems] for buffer in self))


class Systems(NamedTuple):
    """Hold the operands of P problems with M rows each; see `chunk_states` for the notation.

    gram `[P, K, K]`, key and written (key times input gate) `[P, C, K]`, mask `[P, C, C]`, start `[P, M, 1]`,
    spread `[P, K]` (1 / ridge: the squared length of each scaled dimension in the caller's units).
    """

    gram: Tensor
    key: Tensor
    written: Tensor
    mask: Tensor
    start: Tensor
    spread: Tensor

    def apply(self, x: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Multiply rows `[P, M, K]` by their token's H_t + I; the result lies in `buffers.product`."""
        if buffers is None:
            buffers = Buffers.like(x, self.key)
        scores = apply_mask(torch.bmm(x, self.key.mT, out=buffers.scores), self.mask)
        product = torch.baddbmm(x, scores, self.written, out=buffers.product)
        return product.baddbmm_(torch.mul(x, self.start, out=buffers.scratch), self.gram)

    def take(self, index: Tensor | slice) -> Systems:
        """Select problems."""
        return Systems(*(operand[index] for operand in self))


class Solution(NamedTuple):
    """Hold x `[P, M, K]` and the steps that each row took `[P, M]` (int32)."""

    x: Tensor
    steps: Tensor


def solve(systems: Systems, rhs: Tensor, tolerance: float, max_steps: int) -> Solution:
    """Solve every row of rhs `[P, M, K]` to a relative error of x of at most `tolerance`.

    The error is the 2-norm in the caller's units, x / sqrt(ridge). A row stops when it is certified, or when
    `max_steps` are spent, or when its dtype allows no more; rows of zeros take no step.
    """
    P, M, K = rhs.shape
    x = torch.empty_like(rhs)
    steps = torch.empty(P, M, dtype=torch.int32, device=rhs.device)
    size = P
    if rhs.device.type == "cpu" and P:
        C = systems.key.shape[1]
        size = max(4, BLOCK_NUMBERS // (K * K + 2 * C * K + C * C + M * (4 * K + C)))
    for first in range(0, P, max(size, 1)):
        block = slice(first, first + size)
        x[block], steps[block] = _solve_block(systems.take(block), rhs[block], tolerance, max_steps)
    return Solution(x, steps)


def _solve_block(systems: Systems, rhs: Tensor, tolerance: float, max_steps: int) -> Solution:
    """Scale the rows to unit norm, solve, verify what rounding may have spoilt, and scale back."""
    largest = rhs.abs().amax(-1, keepdim=True)
    tiny = torch.finfo(rhs.dtype).tiny
    unit = rhs / largest.clamp(min=tiny)
    norm = unit.norm(dim=-1, keepdim=True)
    unit = unit / norm.clamp(min=tiny)
    live = norm.squeeze(-1) > 0
    run = _Run(systems, tolerance, max_steps)
    x, steps, doubtful = run.solve(unit, live, torch.zeros_like(live, dtype=torch.int32))

    best = torch.full_like(norm.squeeze(-1), torch.inf)
    for _ in range(REFINEMENTS):
        index = doubtful.any(-1).nonzero().squeeze(-1)
        if index.numel() == 0:
            break
        part = systems.take(index)
        guess = x[index]
        residual = unit[index] - part.apply(guess)
        size = residual.norm(dim=-1)
        # A restart that does not halve the true residual will not reach the tolerance either.
        again = doubtful[index] & (size > run.allowed(guess, part.spread)) & (size < 0.5 * best[index])
        best[index] = size
        scale = size.clamp(min=tiny).unsqueeze(-1)
        run = _Run(part, tolerance, max_steps, guess, scale)
        correction, steps[index], _ = run.solve(residual / scale, again, steps[index])
        x[index] = guess + correction * scale
        doubtful = torch.zeros_like(doubtful).index_copy(0, index, again)
    return Solution(x.mul_(norm).mul_(largest), steps)


class _Run:
    """Run conjugate gradients from zero, dropping problems whose rows are all done."""

    def __init__(
        self,
        systems: Systems,
        tolerance: float,
        max_steps: int,
        guess: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.systems = systems
        self.limit = tolerance / (1.0 + tolerance)
        self.max_steps = max_steps
        self.guess = guess
        self.scale = scale
        self.check_every = 1 if systems.key.device.type == "cpu" else 4

    def allowed(self, x: Tensor, spread: Tensor) -> Tensor:
        """Give the residual norm `[P, M]` that certifies the tolerance at x.

        In the caller's units |error| <= |residual| sqrt(largest spread), and |x| - |error| bounds the length
        of the exact solution from below.
        """
        length = torch.bmm(x.square(), spread.unsqueeze(-1)).squeeze(-1).sqrt_()
        return length.mul_(self.limit).div_(spread.amax(-1, keepdim=True).sqrt())

    def solve(self, rhs: Tensor, live: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, the steps, and which rows rounding may have kept from what the recurrence promises."""
        systems, guess, scale = self.systems, self.guess, self.scale
        eps = torch.finfo(rhs.dtype).eps
        answer = torch.zeros_like(rhs)
        answer_steps = steps.clone()
        doubtful = torch.zeros_like(live)
        where: Tensor | None = None  # rows of the full block that the arrays below stand for
        x, r, p = torch.zeros_like(rhs), rhs.clone(), rhs.clone()
        rr = live.to(rhs.dtype)
        steepest = torch.zeros_like(rr)
        steps = steps.clone()
        doubt = doubtful.clone()
        buffers = Buffers.like(rhs, systems.key)
        for step in range(1, self.max_steps + 1):
            if not bool(live.any()):
                break
            product = systems.apply(p, buffers)
            curvature = torch.mul(p, product, out=buffers.scratch).sum(-1)
            live = live & (curvature > 0) & (steps < self.max_steps)
            alpha = torch.where(live, rr / curvature, 0.0)
            steepest = torch.maximum(steepest, torch.where(live, curvature / rr, 0.0))
            steps += live
            along = alpha.unsqueeze(-1)
            x.addcmul_(along, p)
            r.addcmul_(along, product, value=-1)
            new = torch.linalg.vector_norm(r, dim=-1).square_()
            beta = torch.where(live, new / rr, 0.0)
            p.mul_(beta.unsqueeze(-1)).add_(r)
            rr = torch.where(live, new, rr)
            if step % self.check_every:
                continue
            # |x| <= |b| here, so no row can be done before its residual is below the limit itself.
            scaled = rr.sqrt() if scale is None else rr.sqrt() * scale.squeeze(-1)
            if not bool((live & (scaled <= self.limit)).any()):
                continue
            whole = x if guess is None or scale is None else guess + x * scale
            allowed = self.allowed(whole, systems.spread)
            done = live & (scaled <= 0.75 * allowed)
            # The recurrence's residual drifts from the true one by a few roundings of |H_t + I| |x|.
            drift = 4.0 * eps * steepest * whole.norm(dim=-1)
            doubt = doubt | (done & (drift > 0.25 * allowed))
            live = live & ~done
            rows = live.any(-1)
            left = int(rows.sum())
            if left * 4 > rows.shape[0] * 3:
                continue
            if where is None:
                where = torch.arange(rows.shape[0], device=rows.device)
            gone, kept = (~rows).nonzero().squeeze(-1), rows.nonzero().squeeze(-1)
            answer[where[gone]], answer_steps[where[gone]] = x[gone], steps[gone]
            doubtful[where[gone]] = doubt[gone]
            where, systems, buffers = where[kept], systems.take(kept), buffers.first(left)
            x, r, p, rr, live = x[kept], r[kept], p[kept], rr[kept], live[kept]
            steps, steepest, doubt = steps[kept], steepest[kept], doubt[kept]
            guess = None if guess is None else guess[kept]
            scale = None if scale is None else scale[kept]
        if where is None:
            return x, steps, doubt
        answer[where], answer_steps[where], doubtful[where] = x, steps, doubt
        return answer, answer_steps, doubtful

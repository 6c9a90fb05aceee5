"""Solve all systems of a call, each chunk and head in the way that `mesa_price` chose for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .mesa_cg import Systems, solve_by_gradients
from .mesa_price import Plan, make_plan
from .mesa_problems import Problems
from .mesa_shared import (
    Factor,
    Reference,
    apply_series,
    factorise,
    freeze_decay,
    products_needed,
    stretch_masks,
)

BLOCK_NUMBERS = 1 << 22
"""Numbers in the operands of a block of problems on a CPU: what every product touches should lie in the cache."""

ROUNDING = 3.0
"""A block is corrected once by its true residual where the square of its largest eigenvalue times the rounding unit
exceeds this many tolerances: P loses digits by cancellation in the directions of large eigenvalues, and the read-out
and the key's gradient lean on the same directions once more."""
CORRECTION = 3e-2
"""Relative accuracy of that correction."""
SLACK = 0.95
"""Share of the tolerance that the series may use; the rest is for rounding, and for telling that it was kept."""


class Factors(NamedTuple):
    """Keep the factors of the shared problems from the forward to the backward pass, in the plan's order.

    carried `[P, K, K]` and gains `[P, C, K]` of `mesa_shared.Factor`; only the rows of shared problems are written.
    """

    carried: Tensor
    gains: Tensor


class Solution(NamedTuple):
    """Hold x `[P, M, K]`, the products or steps that each row took `[P, M]` (int32), and the factors."""

    x: Tensor
    steps: Tensor
    factors: Factors


def solve(
    made: Problems, rhs: Tensor, tolerance: float, max_steps: int, method: str, factors: Factors | None = None
) -> Solution:
    """Solve every row of rhs `[P, M, K]` to a relative error of x of at most `tolerance`.

    The error is the 2-norm in the caller's units, x / sqrt(ridge). The solution is linear in every row of rhs over the
    whole range of its dtype. factors: what an earlier call with the same `made`, tolerance and method returned.
    """
    P, M, K = rhs.shape
    C = made.key.shape[1]
    reference = freeze_decay(made.log_forget, rhs.dtype)
    # The series bounds the error in the scaled norm.
    scaled = SLACK * tolerance / made.ridge_ratio().double()
    largest = made.largest_eigenvalue()
    plan = make_plan(reference, largest, scaled, size=K, heads=M // C, max_steps=max_steps, method=method)
    x = torch.empty_like(rhs)
    steps = torch.empty(P, M, dtype=torch.int32, device=rhs.device)
    fresh = factors is None
    if factors is None:
        factors = Factors(rhs.new_empty(P, K, K), rhs.new_empty(P, C, K))
    systems = None
    doubtful = largest.square() * torch.finfo(rhs.dtype).eps > ROUNDING * tolerance
    broken: list[Tensor] = []  # not positive definite by chance: conjugate gradients do what can be done
    for first, end in _blocks(plan, K * K + C * K + M * (4 * K + C), rhs.device):
        index, where, run = plan.shared[first:end], slice(first, end), plan.run(first, end)
        restarts = first >= plan.plain
        block = reference.take(index if run is None else run)
        if fresh:
            gram, key, gate = (_take(operand, index, run) for operand in (made.gram, made.key, made.input_gate))
            factor = factorise(gram, key, gate, block, restarts)
            factors.carried[where], factors.gains[where] = factor.carried, factor.gains
        else:
            masks = stretch_masks(block.stretch, rhs.dtype) if restarts else (None, None)
            factor = Factor(factors.carried[where], factors.gains[where], *masks)
        broken.append(index[factor.carried[:, 0, 0].isnan()])
        right = _take(rhs, index, run)
        part = apply_series(factor, right, block.log_ratio, plan.degrees[where])
        again = doubtful[index].nonzero().squeeze(-1)
        if len(again):
            systems = systems or made.systems(M)
            _correct(systems, factor, right, part, block, index, again)
        _put(x, index, run, part)
    steps[plan.shared] = torch.tensor(plan.degrees, dtype=torch.int32, device=rhs.device).unsqueeze(-1)
    direct = torch.cat((plan.direct, *broken))
    if len(direct):
        systems = systems or made.systems(M)
        if len(direct) == P:
            x, steps = solve_by_gradients(systems, rhs, tolerance, max_steps)
        else:
            part, taken = solve_by_gradients(systems.take(direct), rhs[direct], tolerance, max_steps)
            x[direct], steps[direct] = part, taken
    return Solution(x, steps, factors)


def _correct(
    systems: Systems, factor: Factor, rhs: Tensor, x: Tensor, reference: Reference, index: Tensor, again: Tensor
) -> None:
    """Correct the solutions x of some problems (`again`) of a block (`index`) by what their true residual asks for."""
    if len(again) < len(index):
        factor, reference, right, start = factor.take(again), reference.take(again), rhs[again], x[again]
    else:
        right, start = rhs, x
    residual = right - systems.take(index[again]).apply(start)
    products = products_needed(reference.reach.amax(), reference.reach.new_tensor(CORRECTION))
    x.index_add_(0, again, apply_series(factor, residual, reference.log_ratio, [int(products)] * len(again)))


def _blocks(plan: Plan, numbers: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Cut the shared problems into blocks [first, end) that fit the cache and do not mix in those with restarts."""
    size = max(1, BLOCK_NUMBERS // numbers if device.type == "cpu" else len(plan.degrees))
    for begin, stop in ((0, plan.plain), (plan.plain, len(plan.degrees))):
        for first in range(begin, stop, size):
            yield first, min(first + size, stop)


def _take(x: Tensor, index: Tensor, run: slice | None) -> Tensor:
    return x.index_select(0, index) if run is None else x[run]


def _put(x: Tensor, index: Tensor, run: slice | None, part: Tensor) -> None:
    if run is None:
        x.index_copy_(0, index, part)
    else:
        x[run] = part

"""Solve all systems of a call, by chunk and head: by the shared factor, Chebyshev's iteration or conjugate gradients.

Prices are counted in products with a chunk's matrices and decide only about time: every way keeps the tolerance. The
shared factor's products follow from the gates alone; those of the others from a cheap bound on the largest eigenvalue.
Long memories have small decay in a chunk and large eigenvalues, short memories the reverse, so that the prices of the
first two cross once, and a mistake near the crossing costs little. Conjugate gradients take what neither does well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_states import CHUNK
from .mesa_cg import BLOCK_NUMBERS, Systems, conjugate_gradients
from .mesa_chebyshev import iterate, largest_norm, terms_needed
from .mesa_problems import Problems, problem_length
from .mesa_shared import (
    Factor,
    Reference,
    apply_series,
    factorise,
    freeze_decay,
    products_needed,
    restart_masks,
)
from .operator_inputs import check_choice

METHODS = ("auto", "shared", "chebyshev", "cg")
"""Ways of solving: "auto" prices each chunk and head, the others are one way for all."""
FACTOR_PRICE = 4.0
"""Products that a factorisation costs, shared by the query heads of a key head and by forward and backward."""
STEP_PRICE = 3.0
"""Products that a step of conjugate gradients costs: one, and its inner products, norms and stopping test."""
TERM_PRICE = 1.15
"""Products of the shared factor that one of Chebyshev's iteration costs."""
NORM_PRICE = 2.0
"""Products that the bound on the spectrum costs, shared like the factorisation."""
NORM_SHARE = 0.5
"""What the Frobenius norm of H_t usually is of the cheap bound: the terms of a polynomial are first guessed by it."""
ROUNDING = 3.0
"""A block is corrected once by its true residual where the square of its largest eigenvalue times the rounding unit
exceeds this many tolerances: P loses digits by cancellation in the directions of large eigenvalues, and the read-out
and the key's gradient lean on the same directions once more."""
CORRECTION = 3e-2
"""Relative accuracy of that correction."""
SLACK = 0.95
"""Share of the tolerance that the series may use; the rest is for rounding, and for telling that it was kept."""


class Limits(NamedTuple):
    """How exact a solve must be, as a relative error, and the most steps that it may take."""

    tolerance: float
    max_steps: int


class Solving(NamedTuple):
    """The settings of a solve; `mesa_attention` describes them.

    backend: what computes, here "torch" or "triton". chunk: tokens in a chunk, of "torch".
    """

    tolerance: float
    max_steps: int
    method: str = "auto"
    backend: str = "torch"
    chunk: int = CHUNK

    @property
    def limits(self) -> Limits:
        """Return the limits alone."""
        return Limits(self.tolerance, self.max_steps)


def check_solving(tolerance: float, max_steps: int | None, method: str, backend: str, key_size: int) -> Solving:
    """Check the solver's settings, or raise ValueError; backend was chosen before.

    Exact arithmetic ends within K steps; the default of 4 K leaves room for what rounding adds.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance is {tolerance}: must be a number between 0 and 1, both excluded")
    if max_steps is None:
        max_steps = 4 * key_size
    elif isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: must be a whole number of at least 1, or None")
    check_choice("method", method, METHODS)
    if method != "auto" and backend != "torch":
        raise ValueError(f"method is {method!r}: must be 'auto' on back end {backend!r}, or use backend='torch'")
    return Solving(float(tolerance), max_steps, method, backend, problem_length(key_size))


class Assignment(NamedTuple):
    """How P problems are solved.

    shared `[S]`, chebyshev `[E]` and direct `[D]` (int64): the problems solved by the shared factor, by Chebyshev's
    iteration and by conjugate gradients. degrees: the products of each shared problem; plain: how many of the shared
    ones, the first, hold no restart. Within the plain and within the others degrees fall. numbers: `shared` as a list.
    """

    shared: Tensor
    chebyshev: Tensor
    direct: Tensor
    degrees: list[int]
    plain: int
    numbers: list[int]

    def run(self, first: int, end: int) -> slice | None:
        """Return shared problems first to end - 1 as a slice if their numbers follow one another."""
        start = self.numbers[first]
        together = self.numbers[first:end] == list(range(start, start + end - first))
        return slice(start, start + end - first) if together else None


def steps_of_gradients(largest: Tensor, tolerance: Tensor, size: int) -> Tensor:
    """Predict the steps of conjugate gradients `[P]` from a bound `[P]` on the largest eigenvalue (the least is 1).

    The smallest of the size K, after which they end but for rounding, the bound of Chebyshev, and a law fitted to
    correlated keys, where eigenvalues cluster and steps grow like the fourth root of the condition number only
    (docs/solver.md).
    """
    digits = torch.log(2.0 / tolerance)
    root = largest.sqrt()
    bound = digits / torch.log((root + 1.0) / (root - 1.0).clamp(min=1e-9))
    return torch.minimum(bound, 0.535 * digits * root.sqrt()).ceil().clamp(min=1.0, max=float(size))


def assign(
    reference: Reference,
    largest: Tensor,
    tolerance: Tensor,
    *,
    size: int,
    heads: int,
    solving: Solving,
) -> Assignment:
    """Price P problems of key size `size` with `heads` query heads per key head.

    largest `[P]`: a bound on the largest eigenvalue of H_t + I; tolerance `[P]` (float64): the relative error allowed
    in the norm of the scaled system. Every problem's choice depends on itself alone.
    """
    products = products_needed(reference.reach, tolerance)
    unit = torch.finfo(largest.dtype).eps
    factored = largest * 1e2 * unit < 1.0
    # What rounding adds to Chebyshev's error has to fit in what the series leaves of the tolerance.
    bounded = largest * unit <= (1.0 - SLACK) * tolerance
    bounded = bounded & (terms_needed(largest - 1.0, tolerance) <= solving.max_steps)
    if solving.method == "auto":
        steps = steps_of_gradients(largest.double(), tolerance, size)
        by_factor = products + 0.5 * FACTOR_PRICE / heads
        by_terms = TERM_PRICE * terms_needed(NORM_SHARE * (largest - 1.0), tolerance) + 0.5 * NORM_PRICE / heads
        bounded = bounded & (by_terms < STEP_PRICE * steps)
        other = torch.where(bounded, by_terms, STEP_PRICE * steps)
        shared = (by_factor <= other) & ((products <= solving.max_steps) | ((steps > solving.max_steps) & ~bounded))
    else:
        shared = (products <= 1000.0) & (solving.method == "shared")
        bounded = bounded & (solving.method == "chebyshev")
    shared = shared & factored
    bounded = bounded & ~shared
    degree = products.clamp(max=float(solving.max_steps)).to(torch.int64)
    restarts = reference.restarts[:, -1] > 0
    rank = torch.where(shared, restarts * (1 << 40) - degree, torch.where(bounded, 1 << 50, 1 << 51))
    counts = torch.stack((shared.sum(), (shared & ~restarts).sum(), bounded.sum())).tolist()
    order = torch.argsort(rank, stable=True)
    first, chebyshev, direct = order.split((counts[0], counts[2], len(order) - counts[0] - counts[2]))
    return Assignment(first, chebyshev, direct, degree[first].tolist(), counts[1], first.tolist())


class Factors(NamedTuple):
    """What is kept from the forward to the backward pass.

    carried `[P, K, K]` and gains `[P, C, K]` of `mesa_shared.Factor`, in the order of the assignment; only the rows of
    shared problems are written. norm `[P]`: that of `mesa_chebyshev` where it was asked for, else 0.
    """

    carried: Tensor
    gains: Tensor
    norm: Tensor

    @classmethod
    def nothing(cls, like: Tensor) -> Factors:
        """Return empty tensors where nothing is kept, or nothing was factored."""
        return cls(like.new_empty(0), like.new_empty(0), like.new_empty(0))


class Solved(NamedTuple):
    """The solutions x `[P, M, K]`, the products or steps that each row took `[P, M]` (int32), and the factors."""

    x: Tensor
    steps: Tensor
    factors: Factors


def solve(
    made: Problems,
    rhs: Tensor,
    solving: Solving,
    factors: Factors | None = None,
    *,
    rounding: float = ROUNDING,
    block_numbers: int = BLOCK_NUMBERS,
) -> Solved:
    """Solve every row of rhs `[P, M, K]` to a relative error of x of at most the tolerance.

    The error is the 2-norm in the caller's units, x / sqrt(ridge). The solution is linear in every row of rhs over the
    whole range of its dtype. factors: what an earlier call with the same `made` and `solving` returned.
    rounding, block_numbers: as the constants of these names.
    """
    P, M, K = rhs.shape
    C = made.key.shape[1]
    reference = freeze_decay(made.log_forget, rhs.dtype)
    # The series bounds the error in the scaled norm.
    scaled = SLACK * solving.tolerance / made.ridge_ratio().double()
    largest = made.largest_eigenvalue()
    assigned = assign(reference, largest, scaled, size=K, heads=M // C, solving=solving)
    x = torch.empty_like(rhs)
    steps = torch.empty(P, M, dtype=torch.int32, device=rhs.device)
    fresh = factors is None
    if factors is None:
        factors = Factors(rhs.new_empty(P, K, K), rhs.new_empty(P, C, K), rhs.new_zeros(P))
    systems = None
    doubtful = largest.square() * torch.finfo(rhs.dtype).eps > rounding * solving.tolerance
    broken: list[Tensor] = []  # not positive definite by chance: conjugate gradients do what can be done
    size = max(block_numbers // (K * K + C * K + M * (4 * K + C)), 1) if rhs.device.type == "cpu" else max(P, 1)
    for first, end in _blocks(assigned, size):
        index, where, run = assigned.shared[first:end], slice(first, end), assigned.run(first, end)
        restarting = first >= assigned.plain
        block = reference.take(index if run is None else run)
        if fresh:
            gram, key, gate = (_take(operand, index, run) for operand in (made.gram, made.key, made.input_gate))
            factor = factorise(gram, key, gate, block, restarting)
            factors.carried[where], factors.gains[where] = factor.carried, factor.gains
        else:
            masks = restart_masks(block.restarts, rhs.dtype) if restarting else (None, None)
            factor = Factor(factors.carried[where], factors.gains[where], *masks)
        broken.append(index[factor.carried[:, 0, 0].isnan()])
        right = _take(rhs, index, run)
        part = apply_series(factor, right, block.log_ratio, assigned.degrees[where])
        again = doubtful[index].nonzero().squeeze(-1)
        if len(again):
            systems = systems or made.systems(M)
            _correct(systems, factor, right, part, block, index, again)
        _put(x, index, run, part)
    steps[assigned.shared] = torch.tensor(assigned.degrees, dtype=torch.int32, device=rhs.device).unsqueeze(-1)
    if len(assigned.chebyshev):
        if fresh:
            for index in assigned.chebyshev.split(size):
                factors.norm[index] = largest_norm(made, index)
        terms = terms_needed(factors.norm, scaled).clamp(min=2.0).to(torch.int32)
        falling = assigned.chebyshev[terms[assigned.chebyshev].argsort(descending=True, stable=True)]
        for index in falling.split(size):
            x[index] = iterate(made, index, factors.norm[index], rhs[index], terms[index].tolist())
        steps[falling] = terms[falling].unsqueeze(-1) - 1
    direct = torch.cat((assigned.direct, *broken))
    if len(direct):
        systems = systems or made.systems(M)
        if len(direct) == P:
            x, steps = conjugate_gradients(systems, rhs, *solving.limits, block_numbers=block_numbers)
        else:
            part, taken = conjugate_gradients(
                systems.take(direct), rhs[direct], *solving.limits, block_numbers=block_numbers
            )
            x[direct], steps[direct] = part, taken
    return Solved(x, steps, factors)


def _correct(
    systems: Systems, factor: Factor, rhs: Tensor, x: Tensor, reference: Reference, index: Tensor, again: Tensor
) -> None:
    """Correct the solutions x of some problems (`again`) of a block (`index`) by what their true residual asks for.

    Each takes as many products as it needs itself, so that no answer depends on the others.
    """
    products = products_needed(reference.reach[again], reference.reach.new_tensor(CORRECTION))
    falling = products.argsort(descending=True, stable=True)
    again, degree = again[falling], products[falling].to(torch.int64).tolist()
    whole = torch.equal(again, torch.arange(len(index), device=again.device))
    part = slice(None) if whole else again  # a view where nothing is left out
    residual = rhs[part] - systems.take(index[part]).apply(x[part])
    x.index_add_(0, again, apply_series(factor.take(part), residual, reference.log_ratio[part], degree))


def _blocks(assigned: Assignment, size: int) -> Iterator[tuple[int, int]]:
    """Cut the shared problems into blocks [first, end) of at most `size` that do not mix in those with restarts."""
    for begin, stop in ((0, assigned.plain), (assigned.plain, len(assigned.degrees))):
        for first in range(begin, stop, size):
            yield first, min(first + size, stop)


def _take(x: Tensor, index: Tensor, run: slice | None) -> Tensor:
    return x.index_select(0, index) if run is None else x[run]


def _put(x: Tensor, index: Tensor, run: slice | None, part: Tensor) -> None:
    if run is None:
        x.index_copy_(0, index, part)
    else:
        x[run] = part

"""Choose a solver per chunk and head and solve all systems: shared factor, Chebyshev iteration or conjugate gradients.

Costs are counted in products with a chunk's matrices and affect only the time: every method keeps the tolerance. The
shared factor's cost follows from the gates alone, that of the others from a cheap bound on the largest eigenvalue.
Long memories have little decay in a chunk and large eigenvalues, short memories the reverse. So the costs of the first
two cross once, and a wrong choice near the crossing costs little. Conjugate gradients handle what suits neither.
"""

from __future__ import annotations

import functools
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
"""Solver methods: "auto" chooses per chunk and head, the others use one method for all."""
FACTOR_PRICE = 4.0
"""Cost of a factorisation in products; query heads of a key head share it, and so do forward and backward."""
STEP_PRICE = 3.0
"""Cost of a step of conjugate gradients in products: one product, inner products, norms and the stopping test."""
TERM_PRICE = 1.15
"""Cost of a product of Chebyshev iteration, in products of the shared factor."""
NORM_PRICE = 2.0
"""Cost of the bound on the spectrum in products, shared like the factorisation."""
NORM_SHARE = 0.5
"""Typical ratio of the Frobenius norm of H_t to the cheap bound, for a first estimate of the number of terms."""
ROUNDING = 3.0
"""A problem is corrected once by its true residual if its largest eigenvalue squared times the rounding unit exceeds
this many tolerances: P loses digits by cancellation along large eigenvalues, and the output and the key's gradient
weight the same directions once more."""
CORRECTION = 3e-2
"""Relative accuracy of that correction."""
FINE_CORRECTIONS = 2
"""Corrections where float32 would be too coarse for the state; their residual takes it in float64."""
SLACK = 0.95
"""Share of the tolerance that the series may use; the rest allows for rounding and for verification."""


class Limits(NamedTuple):
    """The largest relative error allowed in a solve and the maximum number of steps."""

    tolerance: float
    max_steps: int


class Solving(NamedTuple):
    """The settings of a solve; `mesa_attention` describes them.

    backend: "torch" or "triton". chunk: tokens in a chunk for "torch".
    """

    tolerance: float
    max_steps: int
    method: str = "auto"
    backend: str = "torch"
    chunk: int = CHUNK

    @property
    def limits(self) -> Limits:
        """Return tolerance and max_steps as `Limits`."""
        return Limits(self.tolerance, self.max_steps)


def check_solving(tolerance: float, max_steps: int | None, method: str, backend: str, key_size: int) -> Solving:
    """Check the solver's settings or raise ValueError; `backend` is the one already chosen.

    In exact arithmetic conjugate gradients end within K steps; the default of 4 K allows for rounding.
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
    """The solver chosen for each of P problems.

    shared `[S]`, chebyshev `[E]` and direct `[D]` (int64): the problems solved by the shared factor, by Chebyshev
    iteration and by conjugate gradients. degrees: the number of products of each shared problem. The first `plain`
    shared problems have no restarts; degrees descend within these and within the rest. numbers: `shared` as a list.
    """

    shared: Tensor
    chebyshev: Tensor
    direct: Tensor
    degrees: list[int]
    plain: int
    numbers: list[int]

    def run(self, first: int, end: int) -> slice | None:
        """Return shared problems first to end - 1 as a slice if their numbers are consecutive, else None."""
        start = self.numbers[first]
        together = self.numbers[first:end] == list(range(start, start + end - first))
        return slice(start, start + end - first) if together else None


def steps_of_gradients(largest: Tensor, tolerance: Tensor, size: int) -> Tensor:
    """Predict the steps of conjugate gradients `[P]` from a bound `[P]` on the largest eigenvalue (the least is 1).

    The prediction is the minimum of K (the limit in exact arithmetic), the Chebyshev bound, and a formula fitted to
    correlated keys, where eigenvalues cluster and steps grow only with the fourth root of the condition number
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
    """Choose a solver for P problems of key size `size` with `heads` query heads per key head.

    largest `[P]`: a bound on the largest eigenvalue of H_t + I; tolerance `[P]` (float64): the relative error allowed
    in the norm of the scaled system. The choice for one problem does not depend on the others.
    """
    products = products_needed(reference.reach, tolerance)
    unit = torch.finfo(largest.dtype).eps
    factored = largest * 1e2 * unit < 1.0
    # The rounding error of Chebyshev iteration must fit into the part of the tolerance that the series leaves.
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
    """Factors saved in the forward pass for the backward pass.

    carried `[P, K, K]` and gains `[P, C, K]` of `mesa_shared.Factor`, in the order of the assignment; only the rows of
    shared problems are written. norm `[P]`: `mesa_chebyshev.largest_norm` where it was computed, else 0.
    """

    carried: Tensor
    gains: Tensor
    norm: Tensor

    @classmethod
    def nothing(cls, like: Tensor) -> Factors:
        """Return empty tensors, for calls that save or factor nothing."""
        return cls(like.new_empty(0), like.new_empty(0), like.new_empty(0))


class Solved(NamedTuple):
    """The solutions x `[P, M, K]`, the products or steps of each row `[P, M]` (int32), and the factors."""

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
    whole range of its dtype. factors: those returned by an earlier call with the same `made` and `solving`.
    rounding, block_numbers: see the constants ROUNDING and BLOCK_NUMBERS.
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
    rough = made.gram_error() > scaled
    doubtful = ~rough & (largest.square() * torch.finfo(rhs.dtype).eps > rounding * solving.tolerance)

    @functools.cache
    def matrices(fine: bool) -> Systems:
        systems = made.systems(M)
        return systems._replace(gram=made.fine_gram()) if fine else systems

    broken: list[Tensor] = []  # not positive definite by rounding: left to conjugate gradients
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
        for fine, times, chosen in ((False, 1, doubtful), (True, FINE_CORRECTIONS, rough)):
            again = chosen[index].nonzero().squeeze(-1)
            for _ in range(times if len(again) else 0):
                _correct(matrices(fine), factor, right, part, block, index, again)
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
    for fine, chosen in ((False, direct[~rough[direct]]), (True, direct[rough[direct]])):
        if len(chosen) == P:
            x, steps = conjugate_gradients(matrices(fine), rhs, *solving.limits, block_numbers=block_numbers)
        elif len(chosen):
            part, taken = conjugate_gradients(
                matrices(fine).take(chosen), rhs[chosen], *solving.limits, block_numbers=block_numbers
            )
            x[chosen], steps[chosen] = part, taken
    return Solved(x, steps, factors)


def _correct(
    systems: Systems, factor: Factor, rhs: Tensor, x: Tensor, reference: Reference, index: Tensor, again: Tensor
) -> None:
    """Correct the solutions x of some problems (`again`) of a block (`index`) by solving for their true residual.

    Each problem takes as many products as it alone needs, so that its result does not depend on the others.
    """
    products = products_needed(reference.reach[again], reference.reach.new_tensor(CORRECTION))
    falling = products.argsort(descending=True, stable=True)
    again, degree = again[falling], products[falling].to(torch.int64).tolist()
    whole = torch.equal(again, torch.arange(len(index), device=again.device))
    part = slice(None) if whole else again  # a view where nothing is left out
    residual = rhs[part] - systems.take(index[part]).apply(x[part])
    x.index_add_(0, again, apply_series(factor.take(part), residual, reference.log_ratio[part], degree))


def _blocks(assigned: Assignment, size: int) -> Iterator[tuple[int, int]]:
    """Cut the shared problems into blocks [first, end) of at most `size`, those with restarts apart from the rest."""
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

"""Choose how the systems of each chunk and head are solved: by the shared factor or by conjugate gradients.

Prices are counted in products with a chunk's matrices and decide only about time: both ways keep the tolerance. The
shared factor's products follow from the gates alone; those of conjugate gradients from a cheap bound on the largest
eigenvalue. Long memories have small decay in a chunk and large eigenvalues, short memories the reverse, so that the
two prices cross once, and a mistake near the crossing costs little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .mesa_shared import Reference, products_needed

FACTOR_PRICE = 4.0
"""Products that a factorisation costs, shared by the query heads of a key head and by forward and backward."""
STEP_PRICE = 1.6
"""Products that a step of conjugate gradients costs: one, and its inner products."""
METHODS = ("auto", "shared", "cg")


class Plan(NamedTuple):
    """Say how P problems are solved.

    shared `[S]` and direct `[D]` (int64): the problems solved by the shared factor and by conjugate gradients;
    degrees: the products of each shared problem; plain: how many of the shared ones, the first, hold no restart.
    Within the plain and within the others degrees fall. numbers: `shared` as a list.
    """

    shared: Tensor
    direct: Tensor
    degrees: list[int]
    plain: int
    numbers: list[int]

    def run(self, first: int, end: int) -> slice | None:
        """Give shared problems first to end - 1 as a slice if their numbers follow one another."""
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


def make_plan(
    reference: Reference,
    largest: Tensor,
    tolerance: Tensor,
    *,
    size: int,
    heads: int,
    max_steps: int,
    method: str,
) -> Plan:
    """Price P problems of key size `size` with `heads` query heads a key head.

    largest `[P]`: a bound on the largest eigenvalue of H_t + I; tolerance `[P]` (float64): the relative error allowed
    in the norm of the scaled system. Every problem's choice depends on itself alone.
    """
    products = products_needed(reference.reach, tolerance)
    if method == "cg":
        chosen = torch.zeros_like(products, dtype=torch.bool)
    elif method == "shared":
        chosen = products <= 1000.0
    else:
        steps = steps_of_gradients(largest.double(), tolerance, size)
        price = products + 0.5 * FACTOR_PRICE / heads
        chosen = (price <= STEP_PRICE * steps) & ((products <= max_steps) | (steps > max_steps))
    chosen = chosen & (largest * 1e2 * torch.finfo(largest.dtype).eps < 1.0)
    degree = products.clamp(max=float(max_steps)).to(torch.int64)
    restarts = reference.stretch[:, -1] > 0
    rank = torch.where(chosen, restarts * (1 << 40) - degree, 1 << 50)
    counts = torch.stack((chosen.sum(), (chosen & ~restarts).sum())).tolist()
    order = torch.argsort(rank, stable=True)
    shared, direct = order[: counts[0]], order[counts[0] :]
    return Plan(shared, direct, degree[shared].tolist(), counts[1], shared.tolist())

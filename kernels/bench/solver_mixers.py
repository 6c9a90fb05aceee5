"""Run `mesalm` with mesa mixers that solve in other ways, for ablations of the solver alone.

    python kernels/bench/solver_mixers.py synth kernels/bench/solver-mqar.yaml
    python kernels/bench/solver_mixers.py train context-cpu --arm mesa name=guarded model.mixers=mesa-cg-30-guarded

`model.mixers` takes the names of `SOLVERS` beside the usual ones; everything else is the command itself. The solver
serves training and scoring, forward and backward; only a state that is handed on comes from the exact operator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cg_fixed import BLOCK_NUMBERS, Cut, Solver, mesa_solved_by, solve
from torch import Tensor

from mesalm.cli import main
from mesalm.model.chunk_states import Decay, apply_mask, repeat_rows
from mesalm.model.mixer_gated import GATES
from mesalm.model.mixer_mesa import RIDGE, MesaMixer
from mesalm.model.mixers import register_mixer

GUARD = 1e-5
"""What the peer adds to both denominators of conjugate gradients (flash-linear-attention 0.6.0)."""


def in_blocks(iterate: Callable[..., Tensor], made: Cut, rhs: Tensor, steps: int, problems: int = 16) -> Tensor:
    """Solve some problems at a time, so that what every step touches stays near a CPU's cache."""
    solved = []
    for first in range(0, len(rhs), problems):
        here = slice(first, first + problems)
        parts = [field[here] for field in made if isinstance(field, Tensor)]
        decay = Decay(*(field[here] for field in made.decay))
        solved.append(iterate(Cut(*parts[:3], decay, *parts[3:]), rhs[here], steps))
    return torch.cat(solved) if solved else torch.zeros_like(rhs)


def guarded(made: Cut, rhs: Tensor, steps: int) -> Tensor:
    """Take the peer's steps: conjugate gradients from zero on H_t + ridge itself, both denominators guarded."""
    root = 1.0 / made.inverse_root
    r = rhs * root
    x, p = torch.zeros_like(r), r.clone()
    rr = r.square().sum(-1, keepdim=True)
    for _ in range(steps):
        product = multiply(made, p * root) * root
        alpha = rr / ((p * product).sum(-1, keepdim=True) + GUARD)
        x, r = x + alpha * p, r - alpha * product
        new = r.square().sum(-1, keepdim=True)
        p, rr = r + new / (rr + GUARD) * p, new
    return x * root


def chebyshev(made: Cut, rhs: Tensor, steps: int) -> Tensor:
    """Take Chebyshev steps on [1, a bound by token]: one, the start's Frobenius norm, the squares of the keys since."""
    rows = rhs.shape[1]
    inside = torch.bmm(made.decay.mask, made.gate * made.key.square().sum(-1, keepdim=True))
    largest = 1.0 + made.decay.start * torch.linalg.matrix_norm(made.gram)[:, None, None] + inside
    largest = repeat_rows(largest, rows)
    step, width = 2.0 / (largest + 1.0), (largest - 1.0) / (largest + 1.0)
    x, before, omega = step * rhs, torch.zeros_like(rhs), torch.full_like(step, 2.0)
    for _ in range(steps - 1):
        omega = 4.0 / (4.0 - width.square() * omega)
        residual = rhs - multiply(made, x)
        x, before = x + omega * step * residual + (omega - 1.0) * (x - before), x
    return x


def multiply(made: Cut, rows: Tensor) -> Tensor:
    """Multiply rows `[P, M, K]` by their token's H_t + I."""
    scores = apply_mask(torch.bmm(rows, made.key.mT), made.decay.mask)
    start = repeat_rows(made.decay.start, rows.shape[1])
    return rows + torch.bmm(scores, made.key * made.gate) + torch.bmm(rows * start, made.gram)


SOLVERS: dict[str, Solver] = {
    "mesa-cg-30": partial(solve, steps=30, block=BLOCK_NUMBERS),
    "mesa-cg-30-guarded": partial(in_blocks, guarded, steps=30),
    "mesa-chebyshev-10": partial(in_blocks, chebyshev, steps=10),
    "mesa-chebyshev-30": partial(in_blocks, chebyshev, steps=30),
}
"""Mixers by name, and how each solves. No steps at all is the mixer "linear"."""

BATCHES: dict[str, int] = {"mesa-cg-30-guarded-32": 32, "mesa-cg-30-guarded-512": 512}
"""Guarded mixers whose backward pass sees the gradients of a batch so many times as large."""

for name in BATCHES:
    SOLVERS[name] = SOLVERS["mesa-cg-30-guarded"]


class ScaledGradient(torch.autograd.Function):
    """Nothing in the forward pass; in the backward pass, a gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, factor: float) -> Tensor:
        """Return `given` as it is."""
        ctx.factor = factor
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        """Return the gradient times the factor."""
        return upstreams[0] * ctx.factor, None


class SolvedMixer(MesaMixer):
    """A mesa mixer whose systems are solved by `SOLVERS`."""

    def read(self, projections, state, return_state):
        """Return the read-out by the solver and, if asked, the exact state; see `GatedMixer.read`."""
        if state is not None:
            raise ValueError(f"{self.name}: cannot continue from a cache; it is for training and scoring only")
        operands = [*projections, self.ridge()]
        after = super().read(projections, state, return_state)[1] if return_state else None
        batches = BATCHES.get(self.name, 1)
        operands = [ScaledGradient.apply(operand, float(batches)) for operand in operands]
        output = mesa_solved_by(SOLVERS[self.name], *operands)
        return ScaledGradient.apply(output, 1.0 / batches), after


def add_mixers() -> None:
    """Give each of `SOLVERS` a row in the table of mixers, in this process."""
    for name in SOLVERS:
        mixer = type("SolvedMixer", (SolvedMixer,), {"name": name})
        register_mixer(mixer, float32=(*GATES, RIDGE), converts=False)


if __name__ == "__main__":
    add_mixers()
    sys.exit(main())

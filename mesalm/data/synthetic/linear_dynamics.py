"""Linear dynamical systems: each sequence follows its own map, to be inferred to predict the next state."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field

from mesalm.settings import LARGEST_SEED

from .drawn_stream import step_generator
from .vector_task import Batch, VectorTask, normal, orthogonal, uniform

CLIP = {"orthogonal": 10.0, "contracting": 2.0, "teacher": 10.0}
"""Bound on every entry of a state; without effect for orthogonal maps."""
SLOWEST, FASTEST = 0.9, 0.3
"""The one fixed eigenvalue of a contracting map, and the lower bound of the others, uniform between the two."""


class Trajectory(NamedTuple):
    """Sequences and what generated them: states [B, T + 1, hidden], observations [B, T + 1, size], the map
    [B, hidden, hidden] and the read-out C [B, size, hidden] (None if the state itself is observed)."""

    states: torch.Tensor
    observations: torch.Tensor
    transition: torch.Tensor
    readout: torch.Tensor | None


class LinearDynamics(VectorTask):
    """The dynamics s_{t+1} = W s_t + noise, where the model observes the state or o_t = C s_t + noise.

    Each sequence has its own W, either orthogonal (Haar measure) or contracting with real eigenvalues; or one
    orthogonal teacher is shared by all. The entries of the first state are uniform on [-1, 1]. With partial
    observation, each sequence also has its own C, whose entries have standard deviation 1/2. von Oswald et al. 2023
    (arXiv 2309.05858), section 3, appendix E; first state, noise and C as in the authors' experiments (docs/lab.md).
    """

    name: Literal["linear-dynamics"] = "linear-dynamics"
    length: int = Field(default=50, ge=1, description="Tokens per sequence; one more state is the last target.")
    hidden: int | None = Field(
        default=None, description="Size of the state observed through C; none: the state is observed."
    )
    transition: Literal["orthogonal", "contracting", "teacher"] = Field(
        default="orthogonal", description="How W is drawn; teacher: one orthogonal W for all sequences."
    )
    teacher_seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Seed of the teacher's W.")

    def _check(self) -> None:
        if self.hidden is not None and self.hidden < self.size:
            raise ValueError(f"hidden: must be at least size {self.size}, or none to see the state, not {self.hidden}")

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens per sequence."""
        return self.length

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw inputs and targets: each token's target is the next one."""
        seen = self.trajectories(rows, generator).observations
        return {"inputs": seen[:, :-1], "targets": seen[:, 1:]}

    def trajectories(self, rows: int, generator: torch.Generator) -> Trajectory:
        """Draw sequences with states and maps; the same generator gives the same sequences as `draw`."""
        width = self.hidden or self.size
        transition = self._transition(rows, width, generator)
        readout = None if self.hidden is None else normal((rows, self.size, width), 0.5, generator)
        state = uniform((rows, width), 1.0, generator)
        noise = normal((self.length, rows, width), self.noise, generator)
        states = [state]
        for step in noise:
            state = torch.einsum("bij,bj->bi", transition, state) + step
            state = state.clamp(-CLIP[self.transition], CLIP[self.transition])
            states.append(state)
        stacked = torch.stack(states, dim=1)
        seen = stacked
        if readout is not None:
            seen = stacked @ readout.mT
            seen = seen + normal(tuple(seen.shape), self.noise, generator)
        return Trajectory(stacked, seen, transition, readout)

    def _transition(self, rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
        if self.transition == "orthogonal":
            return orthogonal(rows, width, generator)
        if self.transition == "teacher":
            # drawn on the CPU, so that it is the same on every device
            teacher = orthogonal(1, width, step_generator(self.teacher_seed, 0)).to(generator.device)
            return teacher.expand(rows, width, width)
        basis = normal((rows, width, width), 1.0, generator)
        rates = FASTEST + (SLOWEST - FASTEST) * torch.rand((rows, width), generator=generator, device=generator.device)
        # the basis vectors are exchangeable, so the position of the slowest eigenvalue does not matter
        rates[:, 0] = SLOWEST
        return torch.linalg.solve(basis, basis * rates.unsqueeze(-2), left=False)

"""Nonlinear dynamical systems: each sequence applies its own linear map to features shared by all sequences."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mesalm.settings import LARGEST_SEED

from .drawn_stream import step_generator
from .vector_task import Batch, VectorTask, normal, orthogonal, uniform

DEVIATION = 1.1
"""Standard deviation of the entries of A and B, the two matrices of the feature network."""
START = 0.25
"""Bound on the entries of the first state."""


class NonlinearDynamics(VectorTask):
    """The dynamics s_{t+1} = W f(s_t) + noise with f(s) = g(s) / |g(s)|, g(s) = GELU(s A) B.

    Each sequence has its own orthogonal W; all sequences share A and B. The entries of the first state are uniform on
    [-1/4, 1/4]. von Oswald et al. 2023 (arXiv 2309.05858), section 3; scaling the features to unit length is taken
    from the authors' experiments, not the paper (docs/lab.md).
    """

    name: Literal["nonlinear-dynamics"] = "nonlinear-dynamics"
    length: int = Field(default=50, ge=1, description="Tokens per sequence; one more state is the last target.")
    width: int = Field(default=40, ge=1, description="Hidden units of the feature network.")
    network_seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of the feature network, which all sequences share."
    )

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens per sequence."""
        return self.length

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw inputs and targets: each token's target is the next one."""
        states, _ = self.trajectories(rows, generator)
        return {"inputs": states[:, :-1], "targets": states[:, 1:]}

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """Return f(states), unit vectors of the same shape."""
        return torch.nn.functional.normalize(self.raw_features(states), dim=-1)

    def raw_features(self, states: torch.Tensor) -> torch.Tensor:
        """Return g(states), the features before they are scaled to unit length, of the same shape."""
        first, second = self.network(states.device)
        return torch.nn.functional.gelu(states @ first) @ second

    def network(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A [size, width] and B [width, size], drawn on the CPU so that they are the same on every device."""
        generator = step_generator(self.network_seed, 0)
        first = normal((self.size, self.width), DEVIATION, generator)
        second = normal((self.width, self.size), DEVIATION, generator)
        return first.to(device), second.to(device)

    def trajectories(self, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw states [B, T + 1, size] and maps [B, size, size]; the same generator gives the same states as `draw`."""
        transition = orthogonal(rows, self.size, generator)
        state = uniform((rows, self.size), START, generator)
        noise = normal((self.length, rows, self.size), self.noise, generator)
        first, second = self.network(generator.device)
        states = [state]
        for step in noise:
            raw = torch.nn.functional.gelu(state @ first) @ second
            unit = torch.nn.functional.normalize(raw, dim=-1)
            state = torch.einsum("bij,bj->bi", transition, unit) + step
            states.append(state)
        return torch.stack(states, dim=1), transition

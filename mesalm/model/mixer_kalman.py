"""Gated KalmaNet: ridge regression in proportion to the state, mixed with the plain query."""

from __future__ import annotations

from typing import Any

import torch

from .chunk_states import chunk_length
from .layers import GateProjection
from .mesa_triton import beside
from .mixer_gated import GatedMixer, Projections
from .operator_kalman import STEPS, kalman_attention
from .operator_mesa import MesaState

MIX = "mix_proj"
"""The name of the map to how much of the solution is read; a sigmoid, one per query head."""


class KalmanMixer(GatedMixer):
    """Read both states as `kalman_attention` does; the read-out is gated (Peng et al. 2025).

    Projections, convolution and gates are those of all gated mixers, as in `DeltaMixer`. The cache holds gram and cross
    beside one another, as `MesaMixer`'s does.
    """

    name = "kalman"
    gates_output = True

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.gates:
            self.mix_proj = GateProjection(config.hidden_size, self.heads)

    def more_gates(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return how much of the solution is read, [B, T, H]; all of it without gates."""
        return {"mix": self.mix_proj(hidden_states).sigmoid()} if self.config.gates else {}

    def read(
        self, projections: Projections, state: torch.Tensor | None, return_state: bool, mix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, K + V]; see `GatedMixer.read`."""
        before = None if state is None else MesaState(*state.split((self.key_size, self.value_size), dim=-1))
        output, after = kalman_attention(*projections, mix, initial_state=before, return_state=True)
        return output, beside(after.gram, after.cross) if return_state else None

    def written(self, projections: Projections) -> torch.Tensor:
        """Return the rows of both states, gram's first, as the state holds them beside one another."""
        return torch.cat((projections.key, projections.value), dim=-1)

    @property
    def state_columns(self) -> int:
        """Return how many numbers the state has for each key dimension: a row of gram and one of cross."""
        return self.key_size + self.value_size

    def flops(self, length: int) -> float:
        """Return the operations per token of one forward pass: the products of the steps, and the read-out."""
        K, V, chunk = self.key_size, self.value_size, chunk_length(length)
        product = 2.0 * K * (K + 2 * chunk)
        return self.heads * ((STEPS + 1) * product + 4.0 * K * V + 2.0 * chunk * (K + V)) + self.groups * product

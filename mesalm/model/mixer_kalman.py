"""Gated KalmaNet: ridge regression with a ridge proportional to the state's norm."""

from __future__ import annotations

from typing import Any

import torch

from .chunk_states import chunk_length
from .layers import GateProjection
from .mesa_problems import problem_length
from .mesa_triton import beside
from .mixer_gated import GatedMixer
from .operator_kalman import STEPS, kalman_attention
from .operator_mesa import MesaState
from .operator_records import Tokens

MIX = "mix_proj"
"""The name of the projection to the mixing weight of solution and query: a sigmoid, one per query head."""


class KalmanMixer(GatedMixer):
    """Gated KalmaNet (see `kalman_attention`) with an output gate (Peng et al. 2025).

    Projections, convolution and gates are those of all gated mixers. As in `MesaMixer`, the cache holds gram and cross
    side by side.
    """

    name = "kalman"
    gates_output = True

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.gates:
            self.mix_proj = GateProjection(config.hidden_size, self.heads)

    def more_gates(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `mix` [B, T, H]; without gates nothing, which means 1."""
        return {"mix": self.mix_proj(hidden_states).sigmoid()} if self.config.gates else {}

    def read(
        self, tokens: Tokens, state: torch.Tensor | None, return_state: bool, mix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, K + V]; see `GatedMixer.read`."""
        before = None if state is None else MesaState(*state.split((self.key_size, self.value_size), dim=-1))
        output, after = kalman_attention(*tokens, mix, initial_state=before, return_state=True)
        return output, beside(after.gram, after.cross) if return_state else None

    def written(self, tokens: Tokens) -> torch.Tensor:
        """Return the key for gram and the value for cross."""
        return torch.cat((tokens.key, tokens.value), dim=-1)

    @property
    def state_columns(self) -> int:
        """Return the number of columns of the state: those of gram and cross."""
        return self.key_size + self.value_size

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass: the products of the solver steps, and the read-out."""
        K, V, chunk = self.key_size, self.value_size, chunk_length(length)
        product = 2.0 * K * (K + 2 * chunk_length(length, problem_length(K)))
        solve = (STEPS + 1) * product
        return self.heads * (solve + 4.0 * K * V + 2.0 * chunk * (K + V)) + self.groups * 2.0 * K * (K + 2 * chunk)

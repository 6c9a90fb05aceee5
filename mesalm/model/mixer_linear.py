"""Gated linear attention: the mesa mixer without its solve."""

from __future__ import annotations

import torch

from .chunk_states import chunk_length
from .mixer_gated import GatedMixer
from .operator_linear import linear_attention
from .operator_records import Tokens


class LinearMixer(GatedMixer):
    """Gated linear attention, o_t = G_t' q_t (see `operator_linear`)."""

    name = "linear"

    def read(
        self, tokens: Tokens, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, V]; see `GatedMixer.read`."""
        result = linear_attention(*tokens, initial_state=state, return_state=return_state)
        return result if return_state else (result, None)

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass of the recurrence: two products with a state."""
        K, V, chunk = self.key_size, self.value_size, chunk_length(length)
        return 2.0 * self.heads * (2 * K * V + chunk * (K + V))

"""Gated delta net: a memory that each token corrects by what it got wrong."""

from __future__ import annotations

import torch

from .chunk_states import chunk_length, compute_dtype
from .mixer_gated import GatedMixer, Projections
from .operator_linear import delta_rule


class DeltaMixer(GatedMixer):
    """Correct the state by the token, then read it: see `delta_rule`; the read-out is gated (Yang et al. 2024).

    Projections, convolution and gates are those of all gated mixers; the output gate is the layer's own. The authors'
    layer also has `conv_values` and `forget_rate`.
    """

    name = "delta"
    gates_output = True

    def read(
        self, projections: Projections, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, V]; see `GatedMixer.read`."""
        result = delta_rule(*projections, initial_state=state, return_state=return_state)
        return result if return_state else (result, None)

    def left_behind(self, projections: Projections) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what tokens leave of an empty state, and of the identity where they write nothing."""
        zeros = torch.zeros_like(projections.key)
        operands = projections._replace(query=projections.key, value=torch.cat((projections.value, zeros), dim=-1))
        B, _, G, K = projections.key.shape
        dtype = compute_dtype(zeros.dtype)
        start = torch.cat((zeros.new_zeros(K, self.value_size), torch.eye(K, device=zeros.device)), dim=-1).to(dtype)
        _, state = delta_rule(*operands, initial_state=start.expand(B, G, -1, -1), return_state=True)
        own, transition = state.split((self.value_size, K), dim=-1)
        return own, transition

    def flops(self, length: int) -> float:
        """Return the operations per token of one forward pass: the read-out, and the corrections of each key head."""
        K, V, chunk = self.key_size, self.value_size, chunk_length(length)
        read = 2.0 * (K * V + chunk * (K + V))
        solve = chunk * (3.0 * K + V)
        states = 2.0 * K * (K + 2 * V + K * V / chunk)
        return self.heads * read + self.groups * (solve + states)

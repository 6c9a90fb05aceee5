"""Gated delta net: each token corrects the memory's error on its own key and value."""

from __future__ import annotations

import torch

from .chunk_states import chunk_length, compute_dtype
from .mixer_gated import GatedMixer
from .operator_linear import delta_rule
from .operator_records import Tokens


class DeltaMixer(GatedMixer):
    """The gated delta rule (see `delta_rule`) with an output gate (Yang et al. 2024).

    Projections, convolution and gates are those of all gated mixers. The authors' layer also corresponds to
    `conv_values` and `forget_rate`.
    """

    name = "delta"
    gates_output = True

    def read(
        self, tokens: Tokens, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, V]; see `GatedMixer.read`."""
        result = delta_rule(*tokens, initial_state=state, return_state=return_state)
        return result if return_state else (result, None)

    def left_behind(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the state after the tokens from zero, and the matrix that maps an earlier state over them."""
        zeros = torch.zeros_like(tokens.key)
        operands = tokens._replace(query=tokens.key, value=torch.cat((tokens.value, zeros), dim=-1))
        B, _, G, K = tokens.key.shape
        dtype = compute_dtype(zeros.dtype)
        start = torch.cat((zeros.new_zeros(K, self.value_size), torch.eye(K, device=zeros.device)), dim=-1).to(dtype)
        _, state = delta_rule(*operands, initial_state=start.expand(B, G, -1, -1), return_state=True)
        own, transition = state.split((self.value_size, K), dim=-1)
        return own, transition

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass: the read-out, and the corrections per key head."""
        K, V, chunk = self.key_size, self.value_size, chunk_length(length)
        read = 2.0 * (K * V + chunk * (K + V))
        solve = chunk * (3.0 * K + V)
        states = 2.0 * K * (K + 2 * V + K * V / chunk)
        return self.heads * read + self.groups * (solve + states)

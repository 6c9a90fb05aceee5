"""The mesa mixer: each token's output is the ridge regression of the values on the keys so far, at its query."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .chunk_states import CHUNK, chunk_length, compute_dtype
from .mesa_problems import problem_length
from .mesa_triton import beside
from .mixer_gated import GatedMixer
from .operator_mesa import MesaState, mesa_attention
from .operator_records import Tokens

RIDGE = "ridge_bias"
"""The name of the ridge parameter."""


class SolverSample(NamedTuple):
    """How one layer solved the systems of one row and one key head.

    misses: share of chunks (64 tokens) and query heads with a solution out of tolerance, measured in float64;
    residual: the largest |q - (H + ridge) x| / |q|;
    input_gate, forget_gate: means of the head's gates over the row, None without gates.
    """

    layer: int
    head: int
    misses: float
    residual: float
    input_gate: float | None
    forget_gate: float | None


class MesaMixer(GatedMixer):
    """The mesa layer, o_t = G_t' (H_t + ridge)^-1 q_t (see `operator_mesa`).

    The ridge is `ridge_floor + softplus(ridge_bias)`, one per key head and key dimension, or one per key
    head. The cache holds gram and cross side by side, [B, G, K, K + V] float32, since transformers allows one recurrent
    state per layer.
    """

    name = "mesa"

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        # one-dimensional and named a bias: some training loops exempt vectors from weight decay, others biases
        count = self.groups * (self.key_size if config.ridge_per_channel else 1)
        self.ridge_bias = nn.Parameter(torch.zeros(count, dtype=compute_dtype(torch.get_default_dtype())))
        self.solver_steps: torch.Tensor | None = None
        self.sample_head: int | None = None
        self.solver_sample: SolverSample | None = None

    def init_parameters(self) -> None:
        """Initialise the ridge to `ridge_init`."""
        super().init_parameters()
        above = self.config.ridge_init - self.config.ridge_floor
        init.constant_(self.ridge_bias, above + math.log(-math.expm1(-above)))

    def ridge(self) -> torch.Tensor:
        """Return the ridge, [G, K] or [G], in float32, or float64 in a float64 model."""
        bias = self.ridge_bias.to(compute_dtype(self.ridge_bias.dtype))
        ridge = self.config.ridge_floor + nn.functional.softplus(bias)
        return ridge.view(self.groups, self.key_size) if self.config.ridge_per_channel else ridge

    def read(
        self, tokens: Tokens, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out and the state [B, G, K, K + V]; see `GatedMixer.read`."""
        output, after, report = mesa_attention(
            *tokens,
            self.ridge(),
            initial_state=None if state is None else self._before(state),
            return_state=True,
            **self.config.solver_settings,
            return_report="steps",
        )
        if self.sample_head is not None and not torch.compiler.is_compiling():
            self.solver_sample = self._sample(tokens, state, self.sample_head)
            self.sample_head = None
        if not torch.compiler.is_exporting():  # an exported graph cannot set attributes
            self.solver_steps = report.steps
        return output, beside(after.gram, after.cross) if return_state else None

    def written(self, tokens: Tokens) -> torch.Tensor:
        """Return the key for gram and the value for cross."""
        return torch.cat((tokens.key, tokens.value), dim=-1)

    def _before(self, state: torch.Tensor) -> MesaState:
        return MesaState(state[..., : self.key_size], state[..., self.key_size :])

    @torch.no_grad()
    def _sample(self, tokens: Tokens, state: torch.Tensor | None, head: int) -> SolverSample:
        """Solve the systems of one key head in the first row again and measure the accuracy."""
        query, key, value, log_forget, input_gate = tokens
        one, readers = slice(head, head + 1), self.heads // self.groups
        _, report = mesa_attention(
            query[:1, :, head * readers : (head + 1) * readers],
            key[:1, :, one],
            value[:1, :, one],
            None if log_forget is None else log_forget[:1, :, one],
            None if input_gate is None else input_gate[:1, :, one],
            self.ridge()[one],
            initial_state=None if state is None else self._before(state[:1, one]),
            **self.config.solver_settings,
            return_report=True,
        )
        misses = float((~report.converged).float().mean())
        written = None if input_gate is None else float(input_gate[0, :, head].mean())
        kept = None if log_forget is None else float(log_forget[0, :, head].exp().mean())
        return SolverSample(self.layer_idx, head, misses, float(report.residual.max()), written, kept)

    @property
    def state_columns(self) -> int:
        """Return the number of columns of the state: those of gram and cross."""
        return self.key_size + self.value_size

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass: two states, the read-out, and the products of the solve.

        One solver step is one product with H_t, 2 (K^2 + 2 C K) operations per token and head with chunks of C tokens;
        `solver_steps` is their mean number. The GPU kernels use chunks of 64 for every key size.
        """
        backend = self.config.mesa_backend
        kernels = backend == "triton" or (backend == "auto" and self.ridge_bias.is_cuda)
        chunk = chunk_length(length, CHUNK if kernels else problem_length(self.key_size))
        K, V = self.key_size, self.value_size
        states = 2.0 * K * (K + V)
        read = 2.0 * (K * V + chunk * (K + V))
        return self.heads * (states + read + solver_steps * 2.0 * K * (K + 2 * chunk))

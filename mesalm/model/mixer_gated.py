"""The base class of recurrent mixers: projections, convolution, gates, output and cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .cache_mesa import conv_state, recurrent_state, write_conv_state, write_recurrent_state
from .chunk_states import compute_dtype
from .context_parallel import Shard, leave_behind
from .keywords import MIXER_KEYWORDS, check_keywords
from .layers import GateProjection, ResidualProjection, ShortConvolution, dpfp, same_segment
from .operator_records import Tokens

GATES = ("forget_proj", "input_proj")
"""The projections to the gates, kept in float32: 16 bits cannot represent a forget gate near 1."""

RATE = "rate_bias"
"""The name of the learned forget rate of mixers with `MesaConfig.forget_rate`."""

SATURATED = 0.01
"""A gate within this distance of 0 or 1 counts as saturated."""


class GatedMixer(nn.Module):
    """A mixer with a recurrent state of constant size; subclasses define how the state is read.

    query, key: projection, causal convolution with SiLU, optional feature map, L2 norm; value: projection, and with
    `MesaConfig.conv_values` a convolution. The gates are projections of the token, one per key head:
    beta = sigmoid(input), gamma = sigmoid(forget)^rate, where rate is 1 or learned (`forget_rate`), capped by
    `forget_cap`. The read-out passes through an RMS norm per head (unless `MesaConfig.read_norm` is off), an output
    gate (if the subclass sets `gates_output`) and the output projection (von Oswald et al. 2025, section 2).

    Args:
        config: a `MesaConfig`; importing the class here would be circular.
        layer_idx: the index of the layer.
    """

    name: str
    attention = None
    gates_output = False

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        heads, groups, size = config.head_shape
        self.heads, self.groups, self.head_dim, self.key_size = heads, groups, size, config.key_size
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * size, bias=config.attention_bias)
        self.value_size: int = config.value_size
        self.v_proj = nn.Linear(config.hidden_size, groups * self.value_size, bias=config.attention_bias)
        self.o_proj = ResidualProjection(heads * self.value_size, config.hidden_size, bias=config.attention_bias)
        conv_size = config.conv_size_of(self.name)
        channels = (heads + groups) * size + (groups * self.value_size if config.conv_values else 0)
        self.conv = ShortConvolution(channels, conv_size) if conv_size else None
        if config.gates:
            self.forget_proj = GateProjection(config.hidden_size, groups, start=config.forget_bias)
            self.input_proj = GateProjection(config.hidden_size, groups)
        # one-dimensional and named a bias, so that it gets no weight decay
        rate = torch.zeros(groups, dtype=compute_dtype(torch.get_default_dtype()))
        self.rate_bias = nn.Parameter(rate) if config.gates and config.forget_rate else None
        gated = config.gates and self.gates_output
        self.gate_proj = nn.Linear(config.hidden_size, heads * self.value_size) if gated else None
        eps = config.rms_norm_eps if config.read_norm_eps is None else config.read_norm_eps
        self.output_norm = LlamaRMSNorm(self.value_size, eps=eps) if config.read_norm else nn.Identity()
        self.sample_gates = False
        self.gate_sample: torch.Tensor | None = None

    def init_parameters(self) -> None:
        """Initialise the mixer's own parameters: the forget rate starts at 1."""
        if self.rate_bias is not None:
            init.zeros_(self.rate_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        cache: Cache | None = None,
        shard: Shard | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return the mixer's output, [B, T, hidden], and None for the attention weights.

        Args:
            hidden_states: [B, T, hidden].
            padding_mask: [B, T] booleans, False for padding tokens, which write nothing. None: no padding.
            segments: [B, T] integers, the document of each token in a packed row. None: one document. With a shard,
                those of the whole row.
            cache: transformers' cache; read and updated if given.
            shard: the part of each row that this process reads, if processes share rows.
            kwargs: arguments of softmax attention, ignored.
        """
        check_keywords(self, kwargs, MIXER_KEYWORDS)
        if padding_mask is not None:
            hidden_states = hidden_states.masked_fill(~padding_mask.unsqueeze(-1), 0.0)
        state = recurrent_state(cache, self.layer_idx)
        operands = self._operands(hidden_states, padding_mask, segments, cache, shard)
        tokens = Tokens(*operands, *self._gates(hidden_states, padding_mask, segments, shard))
        if self.sample_gates and not torch.compiler.is_compiling():
            self.gate_sample, self.sample_gates = sample_of_gates(tokens.log_forget, padding_mask), False
        if shard is not None:
            state = shard.state_before(*self.left_behind(tokens))
        more = self.more_gates(hidden_states)
        output, state = self.read(tokens, state, return_state=cache is not None, **more)
        if cache is not None and state is not None:
            write_recurrent_state(cache, self.layer_idx, state)
        output = self.output_norm(output.to(hidden_states.dtype)).flatten(2)
        if self.gate_proj is not None:
            output = output * nn.functional.silu(self.gate_proj(hidden_states))
        return self.o_proj(output), None

    def read(
        self, tokens: Tokens, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out [B, T, H, V] and, if `return_state`, the final state as one tensor, float32 or better."""
        raise NotImplementedError(f"{type(self).__name__} must define how its state is read")

    def written(self, tokens: Tokens) -> torch.Tensor:
        """Return the vector that each token writes into the state with its key, [B, T, G, state_columns]."""
        return tokens.value

    def left_behind(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the state after the tokens from zero, and the transition of an earlier one: `Shard.state_before`."""
        return leave_behind(tokens.key, self.written(tokens), tokens.log_forget, tokens.input_gate)

    def gates(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return log_forget and input_gate of tokens [B, T, hidden], float32 or better [B, T, G]; None: gates of 1.

        Padding and document starts are applied afterwards.
        """
        if not self.config.gates:
            return None, None
        log_forget = nn.functional.logsigmoid(self.forget_proj(hidden_states))
        if self.rate_bias is not None:
            log_forget = log_forget * self.rate_bias.to(log_forget.dtype).exp()
        input_gate = self.input_proj(hidden_states).sigmoid()
        if self.config.forget_cap is not None:
            log_forget = log_forget + torch.log1p(-(1.0 - self.config.forget_cap) * input_gate.square())
        return log_forget, input_gate

    def more_gates(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return further arguments of `read`, by name, computed from the tokens [B, T, hidden]."""
        return {}

    @property
    def state_columns(self) -> int:
        """Return the number of columns of the state: numbers per key dimension of a key head."""
        return self.value_size

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds per sequence after ``length`` tokens."""
        state = self.groups * self.key_size * self.state_columns
        return state + (0 if self.conv is None else self.conv.state_numbers)

    def _operands(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None,
        segments: torch.Tensor | None,
        cache: Cache | None,
        shard: Shard | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value for the operator."""
        batch, length, _ = hidden_states.shape
        value = None
        maps = (self.q_proj, self.k_proj, self.v_proj) if self.config.conv_values else (self.q_proj, self.k_proj)
        both = torch.cat([project(hidden_states) for project in maps], dim=-1)
        both = convolve(self.conv, both, padding_mask, segments, cache, self.layer_idx, shard)
        if self.config.conv_values:
            width = self.groups * self.value_size
            both, value = both.split((both.shape[-1] - width, width), dim=-1)
        both = both.reshape(batch, length, self.heads + self.groups, self.head_dim)
        if self.config.dpfp:
            both = dpfp(both, self.config.dpfp)
        if self.config.qk_l2_norm:
            # a padded token has a zero key, which must stay zero and not become NaN
            both = nn.functional.normalize(both.to(compute_dtype(both.dtype)), dim=-1, eps=1e-6).to(both.dtype)
        value = self.v_proj(hidden_states) if value is None else value
        value = value.view(batch, length, self.groups, self.value_size)
        return both[:, :, : self.heads], both[:, :, self.heads :], value

    def _gates(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None,
        segments: torch.Tensor | None,
        shard: Shard | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return log_forget and input_gate, [B, T, G] or None, with padding masked and a restart at each document."""
        log_forget, input_gate = self.gates(hidden_states)
        if padding_mask is not None:
            padding = ~padding_mask.unsqueeze(-1)
            log_forget = None if log_forget is None else log_forget.masked_fill(padding, 0.0)
            if input_gate is None:
                input_gate = hidden_states.new_ones(*hidden_states.shape[:2], self.groups, dtype=torch.float32)
            input_gate = input_gate.masked_fill(padding, 0.0)
        if segments is not None:
            if log_forget is None:
                log_forget = hidden_states.new_zeros(*hidden_states.shape[:2], self.groups, dtype=torch.float32)
            goes_on = same_segment(segments, 1)
            goes_on[:, 0] = True  # from the cache's state, if there is one
            goes_on = goes_on if shard is None else shard.cut(goes_on)
            log_forget = log_forget.masked_fill(~goes_on.unsqueeze(-1), float("-inf"))
        return log_forget, input_gate


@torch.no_grad()
def sample_of_gates(log_forget: torch.Tensor | None, padding_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return mean and saturated share of the first row's forget gates, [2], leaving out document starts and padding."""
    if log_forget is None:
        return None
    gate, goes_on = log_forget[0].exp(), log_forget[0].isfinite()
    if padding_mask is not None:
        goes_on = goes_on & padding_mask[0].unsqueeze(-1)
        gate = gate.masked_fill(~goes_on, 0.0)
    saturated = ((gate - 0.5).abs() >= 0.5 - SATURATED) & goes_on
    return torch.stack((gate.sum(), saturated.sum().to(gate))) / goes_on.sum().clamp(min=1)


def convolve(
    conv: ShortConvolution | None,
    inputs: torch.Tensor,
    padding_mask: torch.Tensor | None,
    segments: torch.Tensor | None,
    cache: Cache | None,
    layer_idx: int,
    shard: Shard | None = None,
) -> torch.Tensor:
    """Convolve [B, T, D], keeping the last size - 1 inputs in transformers' cache if one is given.

    Padding is skipped: the kernel covers a token's last predecessors that are no padding, so padding inside a continued
    prompt has no effect either. Without a convolution the inputs are returned unchanged, but a convolution state of one
    zero is written to the cache, since transformers otherwise considers a recurrent layer empty.
    """
    if conv is None:
        if cache is not None:
            write_conv_state(cache, layer_idx, inputs.new_zeros(inputs.shape[0], 1, 1))
        return inputs
    batch, _, channels = inputs.shape
    width = conv.size - 1
    past = conv_state(cache, layer_idx)
    # the cache may have been filled under another autocast setting
    past = inputs.new_zeros(batch, width, channels) if past is None else past.transpose(1, 2).to(inputs.dtype)
    if shard is not None:
        past = shard.last_before(inputs, width)
        segments = None if segments is None else shard.cut(segments, before=width)
    extended = torch.cat((past, inputs), dim=1)
    if padding_mask is not None:
        places = nn.functional.pad(padding_mask.int(), (width, 0), value=1).argsort(dim=1, stable=True)
        order = places.unsqueeze(-1).expand(-1, -1, channels)
        extended = extended.gather(1, order)
        if segments is not None:
            segments = nn.functional.pad(segments, (width, 0)).gather(1, places)[:, width:]
    outputs = conv(extended[:, width:], extended[:, :width], segments)
    if padding_mask is not None:
        outputs = torch.zeros_like(extended).scatter(1, order[:, width:], outputs)[:, width:]
    if cache is not None:
        write_conv_state(cache, layer_idx, extended[:, -width:].transpose(1, 2))
    return outputs

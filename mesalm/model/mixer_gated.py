"""What mesa and gated linear attention share: projections, convolution, gates, output and cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .cache_mesa import conv_state, recurrent_state, write_conv_state, write_recurrent_state
from .chunk_states import compute_dtype
from .context_parallel import Stretch, leave_behind
from .keywords import MIXER_KEYWORDS, check_keywords
from .layers import GateProjection, ResidualProjection, ShortConvolution, dpfp, same_segment

GATES = ("forget_proj", "input_proj")
"""The maps to the gates; 16 bits cannot represent a forget gate near 1."""

RATE = "rate_bias"
"""The name of the rate of forgetting, of mixers with `MesaConfig.forget_rate`."""

SATURATED = 0.01
"""A gate as close as this to 0 or 1 is saturated."""


class Projections(NamedTuple):
    """The operands of an operator: query [B, T, H, K], key [B, T, G, K], value [B, T, G, V], gates [B, T, G]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    log_forget: torch.Tensor | None
    input_gate: torch.Tensor | None


class GatedMixer(nn.Module):
    """A mixer with a recurrent state of constant size; subclasses define how the state is read.

    query, key: projection, causal convolution with SiLU, feature map if there is one, L2 norm; value: projection, and
    convolution with `MesaConfig.conv_values`. The gates come from the token, one per key head: beta = sigmoid(input),
    gamma = sigmoid(forget)^rate, the rate 1 or learned (`forget_rate`), capped as `forget_cap` says. The read-out
    passes an RMS norm per head, unless `MesaConfig.read_norm` is off, an output gate if the subclass `gates_output`,
    and the output projection (von Oswald et al. 2025, section 2).

    Args:
        config: a `MesaConfig`, which no mixer imports, since it reads the table of mixers.
        layer_idx: the number of the layer.
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
        # flat and named a bias, so that weight decay spares it
        rate = torch.zeros(groups, dtype=compute_dtype(torch.get_default_dtype()))
        self.rate_bias = nn.Parameter(rate) if config.gates and config.forget_rate else None
        gated = config.gates and self.gates_output
        self.gate_proj = nn.Linear(config.hidden_size, heads * self.value_size) if gated else None
        eps = config.rms_norm_eps if config.read_norm_eps is None else config.read_norm_eps
        self.output_norm = LlamaRMSNorm(self.value_size, eps=eps) if config.read_norm else nn.Identity()
        self.sample_gates = False
        self.gate_sample: torch.Tensor | None = None

    def init_parameters(self) -> None:
        """Start the parameters that are the mixer's own: the rate of forgetting at 1."""
        if self.rate_bias is not None:
            init.zeros_(self.rate_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        cache: Cache | None = None,
        stretch: Stretch | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return the mixed tokens, [B, T, hidden], and no attention weights.

        Args:
            hidden_states: [B, T, hidden].
            padding_mask: [B, T] booleans, False where a token is padding and must write nothing. None: no padding.
            segments: [B, T] integers, the document of each token in a packed row. None: one document. With a stretch
                they are those of the whole row.
            cache: transformers' cache; read and written when given.
            stretch: the part of the rows that these tokens are, where processes share rows.
            kwargs: what softmax attention reads.
        """
        check_keywords(self, kwargs, MIXER_KEYWORDS)
        if padding_mask is not None:
            hidden_states = hidden_states.masked_fill(~padding_mask.unsqueeze(-1), 0.0)
        state = recurrent_state(cache, self.layer_idx)
        operands = self._operands(hidden_states, padding_mask, segments, cache, stretch)
        projections = Projections(*operands, *self._gates(hidden_states, padding_mask, segments, stretch))
        if self.sample_gates and not torch.compiler.is_compiling():
            self.gate_sample, self.sample_gates = sample_of_gates(projections.log_forget), False
        if stretch is not None:
            state = stretch.state_before(*self.left_behind(projections))
        more = self.more_gates(hidden_states)
        output, state = self.read(projections, state, return_state=cache is not None, **more)
        if cache is not None and state is not None:
            write_recurrent_state(cache, self.layer_idx, state)
        output = self.output_norm(output.to(hidden_states.dtype)).flatten(2)
        if self.gate_proj is not None:
            output = output * nn.functional.silu(self.gate_proj(hidden_states))
        return self.o_proj(output), None

    def read(
        self, projections: Projections, state: torch.Tensor | None, return_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the read-out [B, T, H, V] and, if asked, the state after the last token, one float32 tensor."""
        raise NotImplementedError(f"{type(self).__name__} must say how its state is read")

    def written(self, projections: Projections) -> torch.Tensor:
        """Return what each token writes into the state beside its key, [B, T, G, state_columns]."""
        return projections.value

    def left_behind(self, projections: Projections) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what tokens leave of an empty state, and what takes an earlier one on; see `Stretch.state_before`."""
        gates = projections.log_forget, projections.input_gate
        return leave_behind(projections.key, self.written(projections), *gates)

    def gates(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return log_forget and input_gate of the tokens [B, T, hidden], float32 [B, T, G]; None: all gates are 1.

        Padding and the first tokens of documents are set afterwards.
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
        """Return what else `read` is given of the tokens [B, T, hidden], by name."""
        return {}

    @property
    def state_columns(self) -> int:
        """Return how many numbers the state has for each key dimension of a key head."""
        return self.value_size

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds of one sequence after ``length`` tokens."""
        state = self.groups * self.key_size * self.state_columns
        return state + (0 if self.conv is None else self.conv.state_numbers)

    def _operands(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None,
        segments: torch.Tensor | None,
        cache: Cache | None,
        stretch: Stretch | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value."""
        batch, length, _ = hidden_states.shape
        value = None
        maps = (self.q_proj, self.k_proj, self.v_proj) if self.config.conv_values else (self.q_proj, self.k_proj)
        both = torch.cat([made(hidden_states) for made in maps], dim=-1)
        both = convolve(self.conv, both, padding_mask, segments, cache, self.layer_idx, stretch)
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
        stretch: Stretch | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return log_forget and input_gate, float32 [B, T, G] or None: padding writes nothing, documents restart."""
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
            goes_on = goes_on if stretch is None else stretch.cut(goes_on)
            log_forget = log_forget.masked_fill(~goes_on.unsqueeze(-1), float("-inf"))
        return log_forget, input_gate


@torch.no_grad()
def sample_of_gates(log_forget: torch.Tensor | None) -> torch.Tensor | None:
    """Return mean and saturated share of the first row's forget gates, [2]; where documents begin they do not count."""
    if log_forget is None:
        return None
    gate, goes_on = log_forget[0].exp(), log_forget[0].isfinite()
    saturated = ((gate - 0.5).abs() >= 0.5 - SATURATED) & goes_on
    return torch.stack((gate.sum(), saturated.sum().to(gate))) / goes_on.sum().clamp(min=1)


def convolve(
    conv: ShortConvolution | None,
    inputs: torch.Tensor,
    padding_mask: torch.Tensor | None,
    segments: torch.Tensor | None,
    cache: Cache | None,
    layer_idx: int,
    stretch: Stretch | None = None,
) -> torch.Tensor:
    """Convolve [B, T, D], carrying the last size - 1 inputs in transformers' cache when there is one.

    Padding is skipped wherever it is: a token's taps are its last real predecessors, so that padding inside a
    continued prompt changes nothing either. Without a convolution the inputs are returned as they are; transformers
    marks a recurrent layer as filled only when its convolution state is written, so a state of one zero is.
    """
    if conv is None:
        if cache is not None:
            write_conv_state(cache, layer_idx, inputs.new_zeros(inputs.shape[0], 1, 1))
        return inputs
    batch, _, channels = inputs.shape
    width = conv.size - 1
    past = conv_state(cache, layer_idx)
    # a cache may have been filled outside of autocast, or inside
    past = inputs.new_zeros(batch, width, channels) if past is None else past.transpose(1, 2).to(inputs.dtype)
    if stretch is not None:
        past = stretch.last_before(inputs, width)
        segments = None if segments is None else stretch.cut(segments, before=width)
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

"""Replace softmax layers by recurrent mixers that are fitted to the outputs of those layers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mesalm.hub.moments import Moments, solve_held_out
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.layers import GateProjection
from mesalm.model.mixer_gated import GatedMixer
from mesalm.model.modeling_mesa import MesaForCausalLM

FORGET_BIASES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Candidate forget biases for each key head, for memories of 2 to 400 tokens."""

OPEN = 1.2784645
"""Initial bias of an output gate: silu(OPEN) = 1."""

ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Swap:
    """The result of swapping one layer.

    `explained` is the share of the target output's square that the new mixer explains on rows it was not fitted to;
    `forget_bias` is the chosen bias of each key head.
    """

    layer: int
    explained: float
    forget_bias: list[float]


def swap_layers(
    teacher: MesaForCausalLM, layers: Sequence[int], mixer: str, rows: Tensor, *, quiet: bool = False
) -> tuple[MesaForCausalLM, list[Swap]]:
    """Return a copy of a model with `mixer` in the given softmax layers, and the fit of each one.

    Every weight with a counterpart is copied. The other weights of the new mixers are initialized as follows:

    - the convolution passes each token's query and key through, scaled to a root mean square of one;
    - the input gates are half open; the forget gates are the same for every token, with the bias from `FORGET_BIASES`,
      chosen per key head, whose read-out best predicts the old head's output linearly;
    - the output gates, where a mixer has them, are open;
    - the output norm's gain is the root mean square of the old output projection's input;
    - the output projection is the least-squares map from the new read-outs to the output that restores the residual
      stream after the old layer; layers are fitted in order, so that each one compensates for errors of earlier ones.

    Args:
        teacher: the model, float32; it is not modified.
        layers: indices of layers, each softmax in the teacher.
        mixer: the name of a `GatedMixer` in the table of mixers.
        rows: token ids [N, T] to fit to, N at least 4; the last quarter only chooses how strongly to shrink.
        quiet: whether to hide the progress bar.
    """
    names = teacher.config.layer_mixers
    for layer in layers:
        names[layer] = mixer
    student = MesaForCausalLM(_with_mixers(teacher.config, names)).eval()
    student.load_state_dict(teacher.state_dict(), strict=False)
    swaps = []
    with torch.inference_mode():
        streams = _Streams(teacher, rows)
        for layer in tqdm(range(max(layers) + 1), desc="fit layers", disable=True if quiet else None):
            old, new = teacher.model.layers[layer], student.model.layers[layer]
            if layer in layers:
                swaps.append(fit_mixer(old, new, streams, layer))
            streams.advance(old, new)
    return student, swaps


def _with_mixers(config: MesaConfig, names: list[str]) -> MesaConfig:
    return MesaConfig(**{**config.to_dict(), "mixers": names[0] if len(set(names)) == 1 else names})


class _Streams:
    """The residual streams of both models before the same layer, in batches of rows."""

    def __init__(self, model: MesaForCausalLM, rows: Tensor):
        blocks, first = model.model.layers, _Record()
        model.model.layers = nn.ModuleList([first])
        try:
            check = max(1, len(rows) // 4)
            parts = [*rows[:-check].split(ROWS_AT_ONCE), *rows[-check:].split(ROWS_AT_ONCE)]
            for part in parts:
                model.model(part, use_cache=False)
        finally:
            model.model.layers = blocks
        self.old, self.arguments = first.inputs, first.arguments
        self.new = self.old
        self.fitted = -(-(len(rows) - check) // ROWS_AT_ONCE)

    def advance(self, old: nn.Module, new: nn.Module) -> None:
        """Pass both streams through a block, but only once while they are still identical."""
        same = self.new is self.old and type(old.mixer) is type(new.mixer)
        before = self.new
        self.old = [old(batch, **more) for batch, more in zip(self.old, self.arguments, strict=True)]
        self.new = (
            self.old if same else [new(batch, **more) for batch, more in zip(before, self.arguments, strict=True)]
        )


class _Record(nn.Module):
    """A replacement for the blocks of a model that records the input of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.arguments: list[dict[str, Any]] = []

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.inputs.append(hidden_states)
        self.arguments.append(arguments)
        return hidden_states


def fit_mixer(old: Any, new: Any, streams: _Streams, layer: int) -> Swap:
    """Initialize the mixer of block `new` to replace that of block `old`; see `swap_layers`."""
    read: list[Tensor] = []
    wanted: list[Tensor] = []
    with _reading(old.mixer, read):
        for batch, other, more in zip(streams.old, streams.new, streams.arguments, strict=True):
            mixed, _ = old.mixer(old.input_layernorm(batch), **more)
            wanted.append(batch + mixed - other)
    inputs = [new.input_layernorm(batch) for batch in streams.new]
    _start_projections(old.mixer, new.mixer, inputs[: streams.fitted])
    biases = _choose_forgetting(new.mixer, inputs[: streams.fitted], read[: streams.fitted])
    scale = torch.stack([batch.square().mean() for batch in read]).mean().sqrt()
    if new.mixer.config.read_norm:
        new.mixer.output_norm.weight.fill_(scale)
    outputs = read_outs(new.mixer, inputs)
    offset = 0.0 if new.mixer.o_proj.bias is None else new.mixer.o_proj.bias
    moments = [
        Moments.of(features.flatten(0, 1), (target - offset).flatten(0, 1))
        for features, target in zip(outputs, wanted, strict=True)
    ]
    weight, explained = solve_held_out(_sum(moments[: streams.fitted]), _sum(moments[streams.fitted :]))
    new.mixer.o_proj.weight.copy_(weight.T)
    return Swap(layer, explained, biases)


def read_outs(mixer: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the input of a mixer's output projection, [B, T, H * V], for inputs [B, T, hidden]."""
    read: list[Tensor] = []
    with _reading(mixer, read):
        for batch in inputs:
            mixer(batch)
    return read


@contextmanager
def _reading(mixer: Any, read: list[Tensor]) -> Iterator[None]:
    hook = mixer.o_proj.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    try:
        yield
    finally:
        hook.remove()


def _start_projections(old: Any, new: GatedMixer, inputs: Sequence[Tensor]) -> None:
    """Fold the gains of query and key norms into the projections, and pass tokens through the convolution."""
    size = new.head_dim
    for projection, norm in ((new.q_proj, old.q_norm), (new.k_proj, old.k_norm)):
        if isinstance(norm, nn.Identity):
            continue
        gain = norm.weight.repeat(projection.out_features // size)
        projection.weight.mul_(gain.unsqueeze(1))
        if projection.bias is not None:
            projection.bias.mul_(gain)
    for module in new.modules():
        if isinstance(module, GateProjection):
            module.weight.zero_()
    if new.gate_proj is not None:
        new.gate_proj.weight.zero_()
        new.gate_proj.bias.fill_(OPEN)
    if new.conv is None or old.conv is not None:
        return
    convolved = [new.q_proj, new.k_proj] + ([new.v_proj] if new.config.conv_values else [])
    squares = [
        torch.cat([made(batch) for made in convolved], dim=-1).unflatten(-1, (-1, size)).square().mean((0, 1, 3))
        for batch in inputs
    ]
    scale = torch.stack(squares).mean(0).sqrt().clamp_min(1e-6)
    new.conv.weight.zero_()
    new.conv.weight[:, 0] = scale.reciprocal().repeat_interleave(size)


def _choose_forgetting(new: GatedMixer, inputs: Sequence[Tensor], read: Sequence[Tensor]) -> list[float]:
    """Set each key head's forget bias to the one that best predicts the old heads; return the biases."""
    if not hasattr(new, "forget_proj"):
        return []
    errors = []
    for bias in FORGET_BIASES:
        new.forget_proj.bias.fill_(bias)
        moments = _sum(
            Moments.of(_heads(features, new.heads), _heads(target, new.heads))
            for features, target in zip(read_outs(new, inputs), read, strict=True)
        )
        errors.append(moments.error(moments.solve(1e-3)).view(new.groups, -1).sum(-1))
    choice = torch.stack(errors).argmin(0)
    biases = torch.tensor(FORGET_BIASES)[choice]
    new.forget_proj.bias.copy_(biases)
    return biases.tolist()


def _heads(read: Tensor, heads: int) -> Tensor:
    """Return [B, T, H * V] as [B * T, H, V]."""
    return read.flatten(0, 1).unflatten(-1, (heads, -1))


def _sum(moments: Iterable[Moments]) -> Moments:
    return reduce(operator.add, moments)

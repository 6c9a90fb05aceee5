"""Run mixers in a server that stores the states of its requests in pages and has its own softmax attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.mixer_gated import GatedMixer
from mesalm.model.mixer_softmax import SoftmaxMixer
from mesalm.model.mixers import MIXERS

ATTENTION = SoftmaxMixer.name
LENGTH_BOUND = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the longest sequence in a batch."""


def recurrent_mixer(config: MesaConfig) -> str:
    """Return the name of a model's recurrent mixer.

    Raises:
        ValueError: none, two of them, or softmax layers of a kind that vLLM's attention does not do.
    """
    names = set(config.layer_mixers)
    recurrent = sorted(name for name in names if MIXERS[name].recurrent)
    if len(recurrent) != 1:
        raise ValueError(
            f"mixers: vLLM serves models with one kind of recurrent layer, not {' and '.join(recurrent) or 'none'}"
        )
    if names - {recurrent[0], ATTENTION}:
        others = ", ".join(sorted(names - {recurrent[0], ATTENTION}))
        raise ValueError(f"mixers: vLLM combines {recurrent[0]} only with softmax, not with {others}")
    if ATTENTION in names and config.conv_size_of(ATTENTION):
        raise ValueError("conv_size: vLLM serves only softmax layers without a convolution")
    rope = (config.rope_parameters or {}).get("rope_type")
    if ATTENTION in names and rope in LENGTH_BOUND:
        raise ValueError(
            f"rope_parameters: {rope} depends on the longest request of a step, so one request would change others; "
            f"vLLM serves only softmax layers without {' and '.join(LENGTH_BOUND)}"
        )
    return recurrent[0]


def state_shapes(config: MesaConfig) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a recurrent layer's states for one request.

    These are the convolution's last inputs [size - 1, channels], if there is one, and the state [G, K, columns].
    """
    name = recurrent_mixer(config)
    with torch.device("meta"):
        mixer = MIXERS[name].build(config, config.layer_mixers.index(name))
    state = (mixer.groups, mixer.key_size, mixer.state_columns)
    conv = mixer.conv
    return (state,) if conv is None else ((conv.size - 1, conv.state_numbers // (conv.size - 1)), state)


def state_dtypes(config: MesaConfig, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return the dtypes of `state_shapes`: the model's, and float32."""
    return (dtype, torch.float32)[-len(state_shapes(config)) :]


class Pages:
    """A cache for a mixer: the states of the requests in the current batch."""

    def __init__(self, conv: torch.Tensor | None, state: torch.Tensor):
        self.conv_states, self.recurrent_states = [conv], [state]
        self.has_previous_state = [True]
        self.conv = torch.empty(0) if conv is None else conv
        self.state = state

    @property
    def layers(self) -> Pages:
        """Return itself, since it serves a single layer."""
        return self

    def __getitem__(self, layer: int) -> Pages:
        return self

    def update_conv_state(self, state: torch.Tensor, layer: int) -> None:
        """Keep the convolution's last inputs [B, D, size - 1]."""
        self.conv = state

    def update_recurrent_state(self, state: torch.Tensor, layer: int) -> None:
        """Keep the state after the last token [B, G, K, columns]."""
        self.state = state


def mix_paged(
    mixer: GatedMixer,
    hidden_states: torch.Tensor,
    kept: Sequence[torch.Tensor],
    slots: torch.Tensor,
    fresh: torch.Tensor,
) -> torch.Tensor:
    """Return the mixer's output [B, T, hidden] for B requests; their states are read from pages and written back.

    Args:
        mixer: a recurrent mixer.
        hidden_states: [B, T, hidden].
        kept: pages of the states that `state_shapes` names, each [pages, *shape].
        slots: the page of each request, integers [B].
        fresh: booleans [B], whether the request starts here, so that the old content of its page is ignored.
    """
    slots = slots.long()
    read = [torch.where(fresh.view(-1, *[1] * (page.dim() - 1)), 0.0, page[slots]) for page in kept]
    pages = Pages(read[0].mT if len(read) > 1 else None, read[-1])
    cache: Any = pages
    mixed: torch.Tensor = mixer(hidden_states, cache=cache)[0]
    written = (pages.conv.mT, pages.state) if len(read) > 1 else (pages.state,)
    for page, state in zip(kept, written, strict=True):
        page[slots] = state.to(page.dtype)
    return mixed


def prompts(where: Any) -> Iterator[tuple[slice, slice]]:
    """Yield the place of each request that reads a prompt, and the places of its tokens.

    `where` is vLLM's `LinearAttentionMetadata`: requests of one token come first, then those of more.
    """
    if not where.num_prefills:
        return
    starts = where.query_start_loc.tolist()
    for place in range(where.num_decodes, where.num_decodes + where.num_prefills):
        yield slice(place, place + 1), slice(starts[place], starts[place + 1])


def begun(where: Any) -> torch.Tensor:
    """Return which requests have no tokens before these, booleans [requests]."""
    fresh: torch.Tensor = where.seq_lens == where.query_start_loc.diff()
    return fresh


class PagedAttention(nn.Module):
    """A softmax mixer whose keys and values a server keeps.

    Args:
        inner: the mixer.
        attend: what keeps and reads them, as vLLM's attention does: of query [T, H * K], key and value [T, G * K] it
            makes [T, H * K].
    """

    def __init__(self, inner: SoftmaxMixer, attend: nn.Module):
        super().__init__()
        self.inner, self.attend = inner, attend

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: Any
    ) -> tuple[torch.Tensor, None]:
        """Return the mixed tokens [1, T, hidden], and no attention weights."""
        inner = self.inner
        query, key = inner.q_proj(hidden_states), inner.k_proj(hidden_states)
        query = inner.q_norm(query.unflatten(-1, (inner.heads, -1))).transpose(1, 2)
        key = inner.k_norm(key.unflatten(-1, (inner.groups, -1))).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        flat = (made.transpose(1, 2).flatten(2)[0].contiguous() for made in (query, key))
        return inner.o_proj(self.attend(*flat, inner.v_proj(hidden_states)[0]).unsqueeze(0)), None

"""Softmax attention with rotary positions, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from .context_parallel import Shard
from .keywords import MIXER_KEYWORDS, check_keywords
from .layers import ResidualProjection, ShortConvolution
from .mixer_gated import convolve


class SoftmaxMixer(nn.Module):
    """Softmax attention (Vaswani et al. 2017) with rotary positions (Su et al. 2021) and grouped heads.

    With `MesaConfig.conv_size`, queries and keys (with `conv_values` also values) are convolved causally, with SiLU.

    Args:
        config: a `MesaConfig`.
        layer_idx: the index of the layer.
    """

    name = "softmax"
    attention = "full_attention"
    is_causal = True
    window: int | None = None

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        heads, groups, size = config.head_shape
        self.heads, self.groups, self.head_dim = heads, groups, size
        self.num_key_value_groups = heads // groups  # the attention interface reads this name
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, groups * size, bias=config.attention_bias)
        self.o_proj = ResidualProjection(heads * size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = LlamaRMSNorm(size, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = LlamaRMSNorm(size, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        conv_size = config.conv_size_of(self.name)
        channels = (heads + groups * (2 if config.conv_values else 1)) * size
        self.conv = ShortConvolution(channels, conv_size) if conv_size else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: dict[str, torch.Tensor | None] | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        shard: Shard | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the mixer's output, [B, T, hidden], and the attention weights if the back end returns them.

        Args:
            hidden_states: [B, T, hidden].
            padding_mask: [B, T] booleans, False at padding; only the convolution needs it. None: no padding.
            segments: [B, T] integers, the document of each token; only the convolution needs it. With a shard,
                those of the whole row.
            cache: transformers' cache; read and updated if given.
            attention_mask: the masks by layer type, in transformers' format for the attention back end in use.
            position_embeddings: cosines and sines, [B, T, K] each. None: no rotary positions.
            shard: the part of each row that this process reads, if processes share rows; the mask then has a
                column per token up to the end of the shard.
            kwargs: arguments of the attention back end.
        """
        check_keywords(self, kwargs, MIXER_KEYWORDS)
        batch, length, _ = hidden_states.shape
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.conv is not None:
            convolved = [query, key, value] if self.config.conv_values else [query, key]
            joined = torch.cat(convolved, dim=-1)
            if padding_mask is not None:
                joined = joined.masked_fill(~padding_mask.unsqueeze(-1), 0.0)
            joined = convolve(self.conv, joined, padding_mask, segments, cache, self.layer_idx, shard)
            query, key, *values = joined.split([each.shape[-1] for each in convolved], dim=-1)
            value = values[0] if values else value
        query = self.q_norm(query.view(batch, length, self.heads, self.head_dim)).transpose(1, 2)
        key = self.k_norm(key.view(batch, length, self.groups, self.head_dim)).transpose(1, 2)
        value = value.view(batch, length, self.groups, self.head_dim).transpose(1, 2)
        if position_embeddings is not None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if shard is not None:
            key, value = shard.all_until_here(key), shard.all_until_here(value)
        if not query.numel():
            # the back ends cannot reshape empty tensors
            return self.o_proj(query.transpose(1, 2).flatten(2)), None
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            None if attention_mask is None else attention_mask[self.attention],
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            sliding_window=self.window,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds per sequence after ``length`` tokens."""
        return 2 * length * self.groups * self.head_dim + (0 if self.conv is None else self.conv.state_numbers)

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass over `length` tokens: the causal half of scores and read-out."""
        return 2.0 * self.heads * self.head_dim * length

"""Transformers' cache, counting tokens also where no layer of it does."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache


class MesaCache(DynamicCache):
    """Answer `get_seq_length` for models without softmax layers, whose states have no length.

    `generate` asks for it, and transformers' own cache refuses when all its layers are recurrent. The count lies with
    the first layer, so that every cache that shares the layers agrees on it.
    """

    @classmethod
    def around(cls, cache: Cache) -> MesaCache:
        """Return a cache that shares the layers of `cache`."""
        shared = cls()
        shared.layers = cache.layers
        return shared

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen."""
        if self.layers and all(self.is_linear):
            return tokens_seen(self)
        return super().get_seq_length(layer_idx)


def conv_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return what a layer's convolution saw last, [B, D, size - 1], None at the start."""
    return _state(cache, layer_idx, "conv_states")


def recurrent_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return a layer's state, None at the start. It is the cache's own memory: do not write to it."""
    return _state(cache, layer_idx, "recurrent_states")


def _state(cache: Cache | None, layer_idx: int, kind: str) -> torch.Tensor | None:
    # transformers 5.17 has the states and the flag but not yet the getters of later releases
    if cache is None:
        return None
    layer: Any = cache.layers[layer_idx]
    return getattr(layer, kind)[0] if layer.has_previous_state[0] else None


def tokens_seen(cache: Cache) -> int:
    """Return the number of tokens a cache of recurrent layers has seen, 0 after a reset."""
    first: Any = cache.layers[0]
    return getattr(first, "tokens_seen", 0) if any(first.has_previous_state.values()) else 0


def count_tokens(cache: Cache, before: int, new: int) -> None:
    """Write down that a cache which had seen `before` tokens has seen `new` more."""
    first: Any = cache.layers[0]
    first.tokens_seen = before + new

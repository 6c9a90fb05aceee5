"""Transformers' cache, counting tokens also where no layer of it does."""

from __future__ import annotations

from typing import Any

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


def tokens_seen(cache: Cache) -> int:
    """Return the number of tokens a cache of recurrent layers has seen, 0 after a reset."""
    first: Any = cache.layers[0]
    return getattr(first, "tokens_seen", 0) if any(first.has_previous_state.values()) else 0


def count_tokens(cache: Cache, before: int, new: int) -> None:
    """Write down that a cache which had seen `before` tokens has seen `new` more."""
    first: Any = cache.layers[0]
    first.tokens_seen = before + new

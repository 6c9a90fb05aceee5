"""Transformers' caches, counting tokens also where no layer of them does."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .operator_transforms import transforms_active

ATTENTION = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding"}
"""transformers' types of layers that keep keys and values, without and with what a convolution saw last."""

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""How transformers names the cache in calls and outputs: `past_key_values` before release 5.24."""


class CountedTokens(Cache):
    """A cache with a token count for models without softmax layers, whose states have no length.

    `generate` asks for the count, and transformers' own caches refuse when all their layers are recurrent. The first
    layer holds it, so that every cache that shares the layers agrees on it.
    """

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return the number of tokens seen, an integer; a tensor in a static cache, as transformers' own is."""
        if self._all_recurrent:
            return tokens_seen(self)
        return super().get_seq_length(layer_idx)

    @property
    def is_linear(self) -> list[bool]:
        """Return which layers are recurrent; none where all are, as `generate` reads tokens again that no layer counts.

        Since transformers 5.24 it leaves out the tokens in the cache only where some layer is not recurrent.
        """
        recurrent: list[bool] = super().is_linear
        return [False] * len(recurrent) if self._all_recurrent else recurrent

    @property
    def _all_recurrent(self) -> bool:
        # transformers' own `is_linear` of release 5.17 takes layers for recurrent that keep a window beside a state
        return bool(self.layers) and not any(isinstance(layer, CacheLayerMixin) for layer in self.layers)


class MesaCache(CountedTokens, DynamicCache):
    """A dynamic cache that counts its tokens."""

    @property
    def is_compileable(self) -> bool:
        """Return False: a state of constant size could be compiled, but `generate` would do so without being asked."""
        return False


class MesaStaticCache(CountedTokens, StaticCache):
    """A static cache that counts its tokens."""


def counting(cache: Cache) -> CountedTokens:
    """Return a cache of the same kind that shares its layers with `cache` and counts its tokens."""
    counted: Any = copy.copy(cache)
    counted.__class__ = MesaStaticCache if isinstance(cache, StaticCache) else MesaCache
    return counted


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that a caller gave under either name.

    Raises:
        ValueError: a cache under each name.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache: it was given as past_key_values too, its older name; give it once")
    return past_key_values if cache is None else cache


def cache_name(model: Any) -> str | None:
    """Return under which name any causal language model takes a cache, None if it takes none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in accepted), None)


def returned_cache(output: Any) -> Any:
    """Return the cache in a model's output, under the name that it has there; None without one."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def check_cache(cache: Cache, layer_types: list[str]) -> None:
    """Refuse a cache that was made without the configuration, which has no place for recurrent states.

    Raises:
        ValueError: `cache` has not one layer for each of the model's `layer_types`, with a state where that has one.
    """
    remedy = "make it by DynamicCache(config=model.config)"
    if len(cache.layers) != len(layer_types):
        raise ValueError(f"cache: this one has {len(cache.layers)} layers and the model {len(layer_types)}; {remedy}")
    for number, (layer, kind) in enumerate(zip(cache.layers, layer_types, strict=True)):
        if kind not in ATTENTION and not hasattr(layer, "conv_states"):
            raise ValueError(f"cache: its layer {number} holds keys and values, and the model's a state; {remedy}")


def conv_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return a layer's last convolution inputs, [B, D, size - 1], None at the start."""
    return _state(cache, layer_idx, "conv_states")


def recurrent_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return a layer's state, None at the start. It is the cache's own memory: do not write to it."""
    return _state(cache, layer_idx, "recurrent_states")


def write_conv_state(cache: Cache, layer_idx: int, state: torch.Tensor) -> None:
    """Store a layer's last convolution inputs, [B, D, size - 1]."""
    _renew(cache, layer_idx, "conv_states", state)
    cache.update_conv_state(state, layer_idx)


def write_recurrent_state(cache: Cache, layer_idx: int, state: torch.Tensor) -> None:
    """Store a layer's state."""
    _renew(cache, layer_idx, "recurrent_states", state)
    cache.update_recurrent_state(state, layer_idx)


def _renew(cache: Cache, layer_idx: int, kind: str, state: torch.Tensor) -> None:
    """Give a layer fresh memory for `state` where the old must stay as it is, since transformers writes in place.

    So too where the old is of another batch, of before a reset.
    """
    layer: Any = cache.layers[layer_idx]
    held = getattr(layer, kind)
    if _may_change(held[0]) and (held[0] is None or held[0].shape == state.shape):
        return
    if held[0] is None:
        layer.lazy_initialization(**{kind: state})
    held[0] = torch.zeros_like(state)


def _may_change(held: torch.Tensor | None) -> bool:
    """Return whether memory may be written to: nothing differentiates or transforms what was read from it."""
    if torch.is_grad_enabled() or transforms_active():
        return False
    return held is None or not (held.requires_grad or _is_sealed(held))


def _is_sealed(held: torch.Tensor) -> bool:
    """Return whether memory was made in inference mode, now over: it can be neither changed nor saved by autograd."""
    if torch.compiler.is_compiling():
        return False
    return held.is_inference() and not torch.is_inference_mode_enabled()


def _state(cache: Cache | None, layer_idx: int, kind: str) -> torch.Tensor | None:
    # transformers 5.17 has the states and the flag but not yet the getters of later releases
    if cache is None:
        return None
    layer: Any = cache.layers[layer_idx]
    if not layer.has_previous_state[0]:
        return None
    held: torch.Tensor = getattr(layer, kind)[0]
    return held.clone() if _is_sealed(held) else held


def tokens_seen(cache: Cache) -> Any:
    """Return the number of tokens a cache of recurrent layers has seen, 0 after a reset."""
    first: Any = cache.layers[0]
    return getattr(first, "tokens_seen", 0) if any(first.has_previous_state.values()) else 0


def count_tokens(cache: Cache, before: Any, new: int) -> None:
    """Record that a cache which had seen `before` tokens has seen `new` more."""
    first: Any = cache.layers[0]
    if not isinstance(cache, StaticCache):
        first.tokens_seen = before + new
        return
    # a number would make torch.compile start anew for each token
    counted = getattr(first, "tokens_seen", None)
    if not isinstance(counted, torch.Tensor) or _is_sealed(counted):
        first.tokens_seen = torch.zeros((), dtype=torch.long, device=first.device)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(first.tokens_seen)
    first.tokens_seen.copy_(before + new)

"""Transformers' caches, extended to count tokens even when none of their layers does."""

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
"""Map transformers' attention layer types to the types that also cache a convolution's last inputs."""

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""How transformers names the cache in calls and outputs: `past_key_values` before release 5.24."""

NO_WAY_BACK = "has a state, from which crop cannot take tokens back"


class CountedTokens(Cache):
    """A cache with a token count for models without softmax layers, whose states have no length.

    `generate` asks for the count, but transformers' own caches raise an error when all layers are recurrent. The count
    is stored in the first layer, so that all caches sharing these layers agree on it.
    """

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return the number of tokens seen: an integer, or a tensor in a static cache, as in transformers."""
        if self._all_recurrent:
            return tokens_seen(self)
        return super().get_seq_length(layer_idx)

    @property
    def is_linear(self) -> list[bool]:
        """Return for each layer whether it is recurrent, or False for every layer if all of them are.

        Since transformers 5.24, `generate` skips tokens already in the cache only if some layer is not recurrent.
        """
        recurrent: list[bool] = super().is_linear
        return [False] * len(recurrent) if self._all_recurrent else recurrent

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Take back tokens, as in transformers, where every layer can.

        Raises:
            RuntimeError: some layer has a state; transformers would have shortened the layers before it.
        """
        for number, layer in enumerate(self.layers):
            if hasattr(layer, "conv_states"):
                raise RuntimeError(f"cache: layer {number} {NO_WAY_BACK}; copy the cache beforehand instead")
        super().crop(*args, **kwargs)

    @property
    def _all_recurrent(self) -> bool:
        # in transformers 5.17, `is_linear` wrongly reports layers with both a window and a state as recurrent
        return bool(self.layers) and not any(isinstance(layer, CacheLayerMixin) for layer in self.layers)


class MesaCache(CountedTokens, DynamicCache):
    """A dynamic cache that counts its tokens."""

    @property
    def is_compileable(self) -> bool:
        """Return False, although a state of constant size could be compiled: `generate` would compile it unasked."""
        return False

    def batch_select_indices(self, indices: Any) -> None:
        """Keep the rows with these indices, in this order, or where a boolean mask is true.

        Transformers would leave out the states.
        """
        indices = torch.as_tensor(indices)
        self.reorder_cache(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, as for several continuations of one prefix."""
        first: Any = self.layers[0]
        held = first.conv_states[0] if hasattr(first, "conv_states") else first.keys
        if held is not None:
            rows: Any = torch.arange(len(held), device=held.device).repeat_interleave(repeats)
            self.reorder_cache(rows)


class MesaStaticCache(CountedTokens, StaticCache):
    """A static cache that counts its tokens."""


def counting(cache: Cache) -> CountedTokens:
    """Return a cache of the same kind that shares its layers with `cache` and counts its tokens."""
    counted: Any = copy.copy(cache)
    counted.__class__ = MesaStaticCache if isinstance(cache, StaticCache) else MesaCache
    return counted


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that the caller passed as `cache` or as `past_key_values`.

    Raises:
        ValueError: both were given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache: also given under its older name, past_key_values; give only one of them")
    return past_key_values if cache is None else cache


def cache_name(model: Any) -> str | None:
    """Return the name of the cache argument of any causal language model, None if it takes no cache."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in accepted), None)


def returned_cache(output: Any) -> Any:
    """Return the cache in a model's output, whichever of the two names it has there; None if there is none."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def check_cache(cache: Cache, layer_types: list[str]) -> None:
    """Reject a cache that was created without the model's configuration and so cannot store recurrent states.

    Raises:
        ValueError: the layers of `cache` do not match the model's `layer_types` in number or in kind, or record past
            tokens for `crop`.
    """
    remedy = "create it with DynamicCache(config=model.config)"
    if len(cache.layers) != len(layer_types):
        raise ValueError(f"cache: it has {len(cache.layers)} layers but the model has {len(layer_types)}; {remedy}")
    for number, (layer, kind) in enumerate(zip(cache.layers, layer_types, strict=True)):
        if kind not in ATTENTION and not hasattr(layer, "conv_states"):
            raise ValueError(
                f"cache: layer {number} holds keys and values, but the model's layer has a state; {remedy}"
            )
        if kind not in ATTENTION and getattr(layer, "record_past", False):
            raise ValueError(
                f"cache: layer {number} {NO_WAY_BACK}; leave out activate_past_recording, and copy the cache "
                "beforehand instead"
            )


def conv_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return a layer's last convolution inputs, [B, D, size - 1], or None at the start of a sequence."""
    return _state(cache, layer_idx, "conv_states")


def recurrent_state(cache: Cache | None, layer_idx: int) -> torch.Tensor | None:
    """Return a layer's state, or None at the start. The tensor is not a copy: do not write to it."""
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
    """Allocate new memory for `state` if the old tensor must not change, since transformers writes in place.

    Also do so if the old tensor has another batch size, left from before a reset.
    """
    layer: Any = cache.layers[layer_idx]
    held = getattr(layer, kind)
    if _may_change(held[0]) and (held[0] is None or held[0].shape == state.shape):
        return
    if held[0] is None:
        layer.lazy_initialization(**{kind: state})
    held[0] = torch.zeros_like(state)


def _may_change(held: torch.Tensor | None) -> bool:
    """Return whether a tensor may be overwritten: no gradient or function transform depends on its value."""
    if torch.is_grad_enabled() or transforms_active():
        return False
    return held is None or not (held.requires_grad or _is_sealed(held))


def _is_sealed(held: torch.Tensor) -> bool:
    """Return whether a tensor was made in inference mode, which has ended: autograd can neither change nor save it."""
    if torch.compiler.is_compiling():
        return False
    return held.is_inference() and not torch.is_inference_mode_enabled()


def _state(cache: Cache | None, layer_idx: int, kind: str) -> torch.Tensor | None:
    # transformers 5.17 has the states and the flag, but not the getters of later releases
    if cache is None:
        return None
    layer: Any = cache.layers[layer_idx]
    if not layer.has_previous_state[0]:
        return None
    held: torch.Tensor = getattr(layer, kind)[0]
    return held.clone() if _is_sealed(held) else held


def tokens_seen(cache: Cache) -> Any:
    """Return the number of tokens that a cache of recurrent layers has seen; 0 after a reset."""
    first: Any = cache.layers[0]
    return getattr(first, "tokens_seen", 0) if any(first.has_previous_state.values()) else 0


def count_tokens(cache: Cache, before: Any, new: int) -> None:
    """Record that a cache which had seen `before` tokens has seen `new` more."""
    first: Any = cache.layers[0]
    if not isinstance(cache, StaticCache):
        first.tokens_seen = before + new
        return
    # a Python integer would make torch.compile recompile for each token
    counted = getattr(first, "tokens_seen", None)
    if not isinstance(counted, torch.Tensor) or _is_sealed(counted):
        first.tokens_seen = torch.zeros((), dtype=torch.long, device=first.device)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(first.tokens_seen)
    first.tokens_seen.copy_(before + new)

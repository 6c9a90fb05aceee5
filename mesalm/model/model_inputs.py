"""Check and interpret the inputs of a forward pass: token ids, padding and document starts.

Shapes and dtypes are always checked. The values of ids are checked only on the CPU, where reading them needs no
synchronisation; those of a mask on every device, and in a traced graph by an assertion in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .cache_mesa import ATTENTION
from .configuration_mesa import MesaConfig
from .context_parallel import Shard
from .layers import same_segment
from .operator_inputs import values_are_checked
from .operator_transforms import transforms_active

MASK_VALUES = (
    "attention_mask: must hold only 0 (padding) and 1 (token); separate documents by position_ids that restart at each"
)


def check_ids(input_ids: Any, vocabulary: int) -> None:
    """Check token ids.

    Raises:
        ValueError: they are not a tensor [B, T] of int32 or int64, or (checked on the CPU only) exceed the vocabulary.
    """
    _check_integers("input_ids", input_ids)
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: has shape {list(input_ids.shape)}, must be [B, T]")
    if input_ids.device.type == "cpu" and input_ids.numel() and not (is_tracing(input_ids) or transforms_active()):
        low, high = (int(number) for number in input_ids.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"input_ids: {low if low < 0 else high} is not in the vocabulary, whose ids are 0 to {vocabulary - 1}"
            )


def check_embeddings(inputs_embeds: Tensor, width: int) -> None:
    """Raise ValueError unless embeddings are [B, T, width]."""
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != width:
        raise ValueError(f"inputs_embeds: has shape {list(inputs_embeds.shape)}, must be [B, T, {width}]")


def check_masks(attention_mask: Any, config: MesaConfig) -> None:
    """Check that the layers can use a mask of this kind.

    Raises:
        ValueError: not a tensor; more than two dimensions for recurrent layers or convolutions; masks by layer type
            that lack a type of the model.
    """
    if isinstance(attention_mask, dict):
        for name in [*config.attention_kinds, *(["linear_attention"] if config.has_states else [])]:
            if name not in attention_mask:
                raise ValueError(f"attention_mask: masks by layer type need an entry {name!r}, a mask or None")
        return
    if attention_mask is not None and not hasattr(attention_mask, "shape"):
        raise ValueError(f"attention_mask: is a {type(attention_mask).__name__}, must be a tensor [B, T] of 0 and 1")
    if attention_mask is not None and len(attention_mask.shape) != 2 and config.has_states:
        raise ValueError(
            f"attention_mask: has {len(attention_mask.shape)} dimensions, but recurrent layers and convolutions need a "
            "mask [B, T] of 0 and 1, which can only leave out tokens; separate documents by position_ids"
        )


def find_tokens(attention_mask: Any, inputs_embeds: Tensor, seen: Any) -> Tensor | None:
    """Return which tokens are not padding, [B, T] booleans; None if there is no padding.

    In a traced graph, which cannot depend on values, the booleans are returned even without padding.

    Args:
        attention_mask: [B, past + T], 0 at padding; or the masks by layer type, of which the one for recurrent layers
            is [B, T]; or None or a 4-dimensional mask, which both count as no padding.
        inputs_embeds: [B, T, hidden].
        seen: the number of past tokens, an integer or a tensor.

    Raises:
        ValueError: a mask of another shape or with values other than 0 and 1.
    """
    if isinstance(attention_mask, dict):
        attention_mask, seen = attention_mask.get("linear_attention"), 0
    elif attention_mask is not None and len(attention_mask.shape) == 4:
        return None
    if attention_mask is None:
        return None
    batch, length = inputs_embeds.shape[:2]
    if not (isinstance(seen, Tensor) and is_tracing(seen)):
        wanted = (batch, (int(seen) if isinstance(seen, Tensor) else seen) + length)
        if tuple(attention_mask.shape) != wanted:
            raise ValueError(
                f"attention_mask: has shape {list(attention_mask.shape)}, must be [B, past + T] = {list(wanted)}"
            )
    mask = attention_mask.to(inputs_embeds.device)
    tokens = mask[:, mask.shape[1] - length :] != 0
    known = ((mask == 0) | (mask == 1)).all()
    if is_tracing(mask):
        torch._assert_async(known, MASK_VALUES)
        return tokens
    all_known, all_tokens = torch.stack((known, tokens.all())).tolist()
    if not all_known:
        raise ValueError(MASK_VALUES)
    return None if all_tokens else tokens


def find_segments(position_ids: Tensor, tokens: Tensor | None) -> Tensor | None:
    """Number the documents of packed rows, [B, T] integers; None if each row is a single document.

    A document begins at a token whose position exceeds that of the previous token by neither 1 nor, with padding
    between the two, their distance in the row. Numbers are returned even for single documents where values cannot be
    read: in a traced graph, and within `unchecked_values` on a GPU, to avoid synchronisation.

    Args:
        position_ids: [B, T].
        tokens: [B, T] booleans, False at padding, where no document begins; None: no padding.
    """
    if position_ids.shape[1] <= 1:
        return None
    if tokens is None:
        tokens = torch.ones_like(position_ids, dtype=torch.bool)
    places = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    # the index of the previous token that is not padding, -1 if there is none
    before = places.masked_fill(~tokens, -1).cummax(dim=1).values.roll(1, dims=1)
    before[:, 0] = -1
    step = position_ids - position_ids.gather(1, before.clamp(min=0))
    starts = tokens & (before >= 0) & (step != 1) & (step != places - before)
    waits = starts.device.type != "cpu" and not values_are_checked()
    if not (waits or is_tracing(starts)) and not bool(starts.any()):
        return None
    return starts.cumsum(dim=-1)


def read_segments(
    position_ids: Tensor | None, inputs_embeds: Tensor, tokens: Tensor | None, cached: bool
) -> Tensor | None:
    """Check the positions and return their `find_segments`; None without positions.

    Args:
        position_ids: [B, T] or [1, T].
        inputs_embeds: [B, T, hidden].
        tokens: [B, T] booleans, False at padding. None: no padding.
        cached: whether there is a cache.

    Raises:
        ValueError: positions of another shape or dtype; a new document in a row that continues from a cache.
    """
    if position_ids is None:
        return None
    batch, length = inputs_embeds.shape[:2]
    _check_integers("position_ids", position_ids)
    if tuple(position_ids.shape) not in ((batch, length), (1, length)):
        raise ValueError(
            f"position_ids: has shape {list(position_ids.shape)}, must be [B, T] = {[batch, length]} or [1, T]"
        )
    if cached and is_tracing(position_ids):
        return None
    segments = find_segments(position_ids.expand(batch, length), tokens)
    if cached and segments is not None:
        raise ValueError(
            "position_ids: they begin a new document within a row, but a cache holds one document per row; read "
            "packed rows without a cache"
        )
    return segments


def find_shard(
    context: Any, config: MesaConfig, length: int, attention_mask: Any, cache: Cache | None, training: bool
) -> Shard | None:
    """Return this process's shard of rows of ``length`` tokens shared by the group ``context``; None without a group.

    Raises:
        ValueError: a mask, a cache or dropout, which shared rows do not support; or any error of `Shard.of`.
    """
    if context is None:
        return None
    if attention_mask is not None:
        raise ValueError("context: shared rows do not support attention_mask; pad at the end, with labels of -100")
    if cache is not None:
        raise ValueError("context: shared rows cannot continue from a cache; leave out one of the two")
    if training and config.attention_dropout:
        raise ValueError("context: attention dropout would depend on the number of processes; set attention_dropout=0")
    return Shard.of(context, length)


def attention_masks(
    config: MesaConfig,
    inputs_embeds: Tensor,
    attention_mask: Any,
    cache: Cache | None,
    tokens: Tensor | None,
    segments: Tensor | None,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Return the arguments that mask padding and other documents in softmax and window mixers.

    Raises:
        ValueError: a 4-dimensional mask of integers, which back ends would add to scores; flash attention with both
            padding and packed rows, or with rows shared by processes.
    """
    begin = 0
    if shard is not None:
        begin = shard.begin
        if segments is None:
            segments = torch.zeros(len(inputs_embeds), shard.size * shard.length, device=inputs_embeds.device)
    masks: dict[str, Any] = {}
    for kind in config.attention_kinds:
        mask = attention_mask.get(kind) if isinstance(attention_mask, dict) else attention_mask
        if isinstance(mask, Tensor) and mask.ndim == 4 and not (mask.is_floating_point() or mask.dtype == torch.bool):
            raise ValueError(
                f"attention_mask: has 4 dimensions and dtype {mask.dtype}; give booleans, True where a token is read, "
                "or floats that are added to scores"
            )
        sliding = kind == "sliding_attention"
        if segments is None or (mask is not None and len(mask.shape) == 4):
            create = create_sliding_window_causal_mask if sliding else create_causal_mask
            # transformers 5.17 would take the mask's size from a recurrent layer or one of the other attention type
            first = next(number for number, name in enumerate(config.layer_types) if name in (kind, ATTENTION[kind]))
            # positional arguments, since transformers 5.24 renames the cache
            masks[kind] = create(config, inputs_embeds, mask, cache, layer_idx=first)
        elif not is_flash_attention_requested(config):
            # transformers' causal mask looks for documents only if there is no mask at all, not even one of ones
            batch, length = inputs_embeds.shape[:2]
            causal = sliding_window_causal_mask_function(config.window) if sliding else causal_mask_function
            masks[kind] = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
                batch_size=batch,
                q_length=length,
                kv_length=begin + length,
                q_offset=begin,
                mask_function=and_masks(causal, packed_sequence_mask_function(segments)),
                attention_mask=tokens,
                allow_is_causal_skip=False,
                dtype=inputs_embeds.dtype,
                config=config,
                device=inputs_embeds.device,
            )
    if config._attn_implementation in ("eager", "flex_attention"):
        masks = {kind: _added(mask, inputs_embeds.dtype) for kind, mask in masks.items()}
    if masks or segments is None:
        return {"attention_mask": masks}
    if shard is not None:
        raise ValueError("context: flash attention cannot read shared rows; use attn_implementation='sdpa'")
    if tokens is not None:
        raise ValueError(
            "attention_mask: flash attention takes either padding or the documents of position_ids; leave one of them "
            "out, or use attn_implementation='sdpa'"
        )
    starts = ~same_segment(segments, 1)
    bounds = torch.nn.functional.pad(starts.flatten().nonzero().flatten(), (0, 1), value=starts.numel()).int()
    longest = int(bounds.diff().max())
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return {"attention_mask": None, **lengths}


def _added(mask: Any, dtype: torch.dtype) -> Any:
    """Return a mask in the form that back ends add to scores, whose softmax in float32 must not read it as -inf."""
    if not isinstance(mask, Tensor):
        return mask
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
    return mask.clamp(min=lowest) if mask.dtype == torch.float64 else mask


def _check_integers(name: str, numbers: Any) -> None:
    if not isinstance(numbers, Tensor):
        raise ValueError(f"{name}: is a {type(numbers).__name__}, must be a tensor [B, T] of integers")
    if numbers.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: has dtype {numbers.dtype}, must be int64 or int32")

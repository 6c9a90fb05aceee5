"""The keywords that transformers hands to a forward pass beside a model's own arguments; all others are refused."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

DOCUMENT_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What transformers' collators say of packed documents beside their positions; flash attention reads it."""

UNREAD_KEYWORDS = ("tokenizer",)
"""What `generate` hands on to the model though it is meant for `generate` itself, for `stop_strings`."""

LOSS_KEYWORDS = ("num_items_in_batch", "shift_labels", "ignore_index")
"""What the loss of a causal language model reads: its divisor, labels that are shifted already, the label left out."""

BASE_KEYWORDS = (
    *DOCUMENT_KEYWORDS,
    *UNREAD_KEYWORDS,
    *("is_causal", "output_attentions", "output_hidden_states"),
    # Trainer gives the divisor of the loss to every model that takes further keywords
    "num_items_in_batch",
    # transformers' tracing of a model's inputs and outputs
    *("debug_io", "debug_io_dir", "prune_layers"),
)
"""What every model takes."""

MIXER_KEYWORDS = (*BASE_KEYWORDS, "attention_mask", "position_embeddings")
"""What blocks hand to every mixer."""


def check_keywords(module: nn.Module, given: dict[str, Any], known: Collection[str] = BASE_KEYWORDS) -> None:
    """Refuse a keyword that nothing reads.

    Args:
        module: whose forward pass was called.
        given: the keywords that are no named arguments of it.
        known: the ones it takes nevertheless.

    Raises:
        TypeError: a keyword that is not among `known`.
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *inspect.signature(module.forward).parameters], n=1)
            hint = f"did you mean {close[0]!r}?" if close else "leave it out"
            raise TypeError(f"{type(module).__name__}.forward: {name!r} is no argument of it; {hint}")


def attention_keywords(given: dict[str, Any], position_ids: torch.Tensor | None, recurrent: bool) -> dict[str, Any]:
    """Return the keywords that layers read; where documents begin `position_ids` say to every layer.

    Raises:
        ValueError: limits of documents without `position_ids`; later tokens to be read (`is_causal` False) where layers
            are `recurrent`.
    """
    for name in DOCUMENT_KEYWORDS:
        if given.get(name) is not None and position_ids is None:
            raise ValueError(f"{name}: documents are told apart by position_ids; give them too, from 0 in each")
    if recurrent and given.get("is_causal") is False:
        raise ValueError("is_causal: recurrent layers and convolutions cannot read later tokens; leave it out")
    unread = (*DOCUMENT_KEYWORDS, *UNREAD_KEYWORDS)
    return {name: value for name, value in given.items() if name not in unread}

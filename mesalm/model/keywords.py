"""The keyword arguments that transformers passes to a forward pass beside its own; all others are errors."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

DOCUMENT_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Limits of packed documents that transformers' collators give beside positions; flash attention reads them."""

UNREAD_KEYWORDS = ("tokenizer",)
"""Arguments of `generate` itself (here for `stop_strings`) that it nevertheless passes to the model."""

LOSS_KEYWORDS = ("num_items_in_batch", "shift_labels", "ignore_index")
"""Arguments of the causal language model loss: its divisor, labels already shifted, the label to ignore."""

BASE_KEYWORDS = (
    *DOCUMENT_KEYWORDS,
    *UNREAD_KEYWORDS,
    *("is_causal", "output_attentions", "output_hidden_states"),
    # Trainer passes the divisor of the loss to every model that accepts **kwargs
    "num_items_in_batch",
    # transformers' tracing of a model's inputs and outputs
    *("debug_io", "debug_io_dir", "prune_layers"),
)
"""Keyword arguments that every model accepts."""

MIXER_KEYWORDS = (*BASE_KEYWORDS, "attention_mask", "position_embeddings")
"""Keyword arguments that blocks pass to every mixer."""


def check_keywords(module: nn.Module, given: dict[str, Any], known: Collection[str] = BASE_KEYWORDS) -> None:
    """Reject keyword arguments that nothing reads.

    Args:
        module: the module whose forward pass was called.
        given: the keyword arguments that are not named parameters of it.
        known: the ones that are accepted nevertheless.

    Raises:
        TypeError: a keyword argument is not in `known`.
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *inspect.signature(module.forward).parameters], n=1)
            hint = f"did you mean {close[0]!r}?" if close else "leave it out"
            raise TypeError(f"{type(module).__name__}.forward: there is no argument {name!r}; {hint}")


def attention_keywords(given: dict[str, Any], position_ids: torch.Tensor | None, recurrent: bool) -> dict[str, Any]:
    """Return the keyword arguments for the layers; document starts are taken from `position_ids` alone.

    Raises:
        ValueError: limits of documents without `position_ids`; `is_causal=False` with `recurrent` layers, which cannot
            read later tokens.
    """
    for name in DOCUMENT_KEYWORDS:
        if given.get(name) is not None and position_ids is None:
            raise ValueError(f"{name}: documents are separated by position_ids; give these too, from 0 in each")
    if recurrent and given.get("is_causal") is False:
        raise ValueError("is_causal: recurrent layers and convolutions cannot read later tokens; leave it out")
    unread = (*DOCUMENT_KEYWORDS, *UNREAD_KEYWORDS)
    return {name: value for name, value in given.items() if name not in unread}


def check_custom_generate(given: dict[str, Any]) -> None:
    """Raise ValueError for an option of `generate` that transformers does not pass to a function of one's own."""
    for name in ("assistant_model", "streamer"):
        if callable(given.get("custom_generate")) and given.get(name) is not None:
            instead = "give draft=mesalm.hub.speculate.draft_model(assistant)" if name != "streamer" else "leave it out"
            raise ValueError(f"{name}: is not passed on to a function given as custom_generate; {instead}")

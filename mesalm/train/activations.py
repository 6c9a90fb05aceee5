"""Estimate of a training step's activation memory, beside weights, gradients and optimiser."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.train.randomness import preserved_randomness

PROBED = (128, 192, 256)
"""Lengths at which activations are counted; their size is a polynomial of degree two in the length."""
OUTSIDE, HEAD = -2, -1
"""Keys beside the numbers of blocks: what is saved outside the blocks before the logits, and from the logits on."""


@contextmanager
def counted_storages(found: Callable[[torch.Tensor], None], weights: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Call ``found`` with each tensor that autograd saves in the block, once per storage and without ``weights``."""
    seen = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in weights}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage  # keep it alive, so that its address is not reused
            found(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield


def activation_bytes(
    config: MesaConfig,
    rows: int,
    length: int,
    *,
    bf16: bool,
    recompute: bool = False,
    copies: bool = True,
    logits: int | None = None,
) -> float:
    """Return the peak bytes of a forward and backward pass on [rows, length], without weights, gradients, optimiser.

    One block of each mixer, at full width, runs over a few tokens on the CPU, and the tensors saved by autograd are
    counted. The gradient of the logits, from which the backward pass starts, is added twice in float32. ``copies``:
    whether autocast keeps a 16-bit copy of the weights; ``recompute``: whether the backward pass recomputes blocks;
    ``logits``: how many are computed at once (`token_loss.TokenLoss`), None: all.
    """
    kinds = list(dict.fromkeys(config.layer_mixers))
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.mixers = len(kinds), kinds
    with preserved_randomness():
        model = MesaForCausalLM(small)
        counted = [_saved_bytes(model, tokens, bf16) for tokens in PROBED]
    tokens = rows * length
    at_once = tokens if logits is None else min(tokens, max(1, logits // config.vocab_size))
    parts = {}
    for part in counted[0]:
        square, linear, constant = np.polyfit(PROBED, [saved[part] for saved in counted], 2)
        parts[part] = copies * constant + (at_once if part == HEAD else tokens) * (linear + square * length)
    parts[HEAD] += 8.0 * at_once * config.vocab_size
    if at_once < tokens:  # what the head reads of all tokens, and its gradient
        parts[HEAD] += 8.0 * tokens * config.hidden_size
    blocks = [parts[kinds.index(mixer)] for mixer in config.layer_mixers]
    if recompute:
        blocks = [4.0 * tokens * config.hidden_size * len(blocks), max(blocks)]
    return float(sum(blocks) + parts[OUTSIDE] + parts[HEAD])


def _saved_bytes(model: MesaForCausalLM, length: int, bf16: bool) -> dict[int, int]:
    """Count the bytes that autograd saves per block, under `HEAD` from the logits on, under `OUTSIDE` the rest."""
    place, found = OUTSIDE, defaultdict(int, {OUTSIDE: 0, HEAD: 0})

    def count(tensor: torch.Tensor) -> None:
        found[place] += tensor.untyped_storage().nbytes()

    def enter(number: int) -> Any:
        def hook(*_: Any) -> None:
            nonlocal place
            place = number

        return hook

    hooks = [layer.register_forward_pre_hook(enter(number)) for number, layer in enumerate(model.model.layers)]
    hooks += [layer.register_forward_hook(enter(OUTSIDE)) for layer in model.model.layers]
    hooks.append(model.lm_head.register_forward_pre_hook(enter(HEAD)))
    ids = torch.randint(model.config.vocab_size, (1, length))
    documents = torch.arange(length)[None] % (length // 2)  # two, as rows hold several
    with counted_storages(count, model.parameters()), torch.autocast("cpu", enabled=bf16):
        model(input_ids=ids, position_ids=documents, labels=ids)
    for hook in hooks:
        hook.remove()
    return found

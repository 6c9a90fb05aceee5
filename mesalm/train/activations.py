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
    config: MesaConfig, rows: int, length: int, *, bf16: bool, recompute: bool = False, copies: bool = True
) -> float:
    """Return the peak bytes of a forward and backward pass on [rows, length], without weights, gradients, optimiser.

    One block of each mixer, at full width, runs over a few tokens on the CPU, and the tensors saved by autograd are
    counted. The gradient of the logits, from which the backward pass starts, is added twice in float32. ``copies``:
    whether autocast keeps a 16-bit copy of the weights; ``recompute``: whether the backward pass recomputes blocks.
    """
    kinds = list(dict.fromkeys(config.layer_mixers))
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.mixers = len(kinds), kinds
    with preserved_randomness():
        model = MesaForCausalLM(small)
        counted = [_saved_bytes(model, tokens, bf16) for tokens in PROBED]
    parts = {}
    for part in counted[0]:
        square, linear, constant = np.polyfit(PROBED, [saved[part] for saved in counted], 2)
        parts[part] = copies * constant + rows * length * (linear + square * length)
    blocks = [parts[kinds.index(mixer)] for mixer in config.layer_mixers]
    if recompute:
        blocks = [4.0 * rows * length * config.hidden_size * len(blocks), max(blocks)]
    return float(sum(blocks) + parts[len(kinds)] + 8.0 * rows * length * config.vocab_size)


def _saved_bytes(model: MesaForCausalLM, length: int, bf16: bool) -> dict[int, int]:
    """Count the bytes that autograd saves per block; the key after the last block stands for the rest of the model."""
    outside = len(model.model.layers)
    place, found = outside, defaultdict(int, {outside: 0})

    def count(tensor: torch.Tensor) -> None:
        found[place] += tensor.untyped_storage().nbytes()

    def enter(number: int) -> Any:
        def hook(*_: Any) -> None:
            nonlocal place
            place = number

        return hook

    hooks = [layer.register_forward_pre_hook(enter(number)) for number, layer in enumerate(model.model.layers)]
    hooks += [layer.register_forward_hook(enter(outside)) for layer in model.model.layers]
    ids = torch.randint(model.config.vocab_size, (1, length))
    documents = torch.arange(length)[None] % (length // 2)  # two, as rows hold several
    with counted_storages(count, model.parameters()), torch.autocast("cpu", enabled=bf16):
        model(input_ids=ids, position_ids=documents, labels=ids)
    for hook in hooks:
        hook.remove()
    return found

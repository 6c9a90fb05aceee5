"""Capture the operands that a model's mixers pass to their operators during the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mesalm.model.mixers import MIXERS


class Reading(NamedTuple):
    """The operands of one layer in one forward pass, on the model's device.

    query `[B, T, H, K]`, key and value `[B, T, G, K]`, log_forget and input_gate `[B, T, G]` (0 and 1 for a layer
    without gates), ridge `[G, K]` and steps `[B, N, H]` per chunk of 64 tokens (both None for a layer without a
    solver).
    """

    layer: int
    mixer: str
    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    ridge: Tensor | None
    steps: Tensor | None


def mixers_of(model: nn.Module) -> list[Any]:
    """Return the model's mixers in the order of its layers, including those from a model's remote code."""
    found: list[Any] = [
        module
        for module in model.modules()
        if getattr(module, "name", None) in MIXERS and isinstance(getattr(module, "layer_idx", None), int)
    ]
    return sorted(found, key=lambda mixer: mixer.layer_idx)


def is_recurrent(mixer: Any) -> bool:
    """Return whether a mixer reads a state through an operator, so that operands can be captured."""
    return callable(getattr(mixer, "read", None))


@contextmanager
def watched(model: nn.Module, see: Callable[[Reading], None]) -> Iterator[None]:
    """Within the context, call `see` with the operands of each mesa or linear layer whenever it runs."""
    mixers = [mixer for mixer in mixers_of(model) if is_recurrent(mixer)]
    for mixer in mixers:
        mixer.read = _watched_read(mixer, see)
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.read  # restores the method of the class


def _watched_read(mixer: Any, see: Callable[[Reading], None]) -> Callable[..., Any]:
    """Wrap a mixer's `read` so that `see` receives its operands."""
    read = mixer.read

    def reading(operands: Any, *rest: Any, **named: Any) -> Any:
        result = read(operands, *rest, **named)
        see(_reading(mixer, operands))
        return result

    return reading


@torch.no_grad()
def _reading(mixer: Any, operands: Any) -> Reading:
    query, key, value, log_forget, input_gate = operands
    ridge = steps = None
    if hasattr(mixer, "ridge"):
        ridge = mixer.ridge()
        ridge = (ridge if ridge.dim() == 2 else ridge.unsqueeze(-1)).expand(key.shape[2], key.shape[3])
        steps = mixer.solver_steps
    shape = key.shape[:3]
    return Reading(
        layer=mixer.layer_idx,
        mixer=mixer.name,
        query=query,
        key=key,
        value=value,
        log_forget=torch.zeros(shape, device=key.device) if log_forget is None else log_forget,
        input_gate=torch.ones(shape, device=key.device) if input_gate is None else input_gate,
        ridge=ridge,
        steps=steps,
    )

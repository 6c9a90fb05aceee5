"""Support for torch.func and higher derivatives, for which the chunked operators use the exact recurrences.

A chunked operator defines only its first derivative in reverse mode and is opaque to autograd otherwise. The exact
recurrence consists of torch functions, so every transform works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor, ...]


def transforms_active() -> bool:
    """Return whether a torch.func transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def gradient_is_differentiated() -> bool:
    """Return, within a backward pass, whether a transform needs more than a batch of first derivatives."""
    functorch = torch._C._functorch
    levels = [level.key() for level in functorch.get_interpreter_stack() or ()]
    if forward_ad._current_level >= 0 or any(key != functorch.TransformType.Vmap for key in levels):
        return True
    return bool(levels) and torch.is_grad_enabled()


def pull_back(function: Callable[..., Any], upstreams: Sequence[Tensor], operands: Sequence[Tensor]) -> Gradients:
    """Return the gradients of the operands of `function`, which every transform can differentiate again."""
    gradients: Gradients = torch.func.vjp(function, *operands)[1](tuple(upstreams))
    return gradients


def register_second_order(op: Any, function: Callable[..., Any], upstreams: int, operands: int) -> None:
    """Register a backward for `op`, which computes the gradients of `function`, by `pull_back`, for any order.

    The first arguments of `op` are the upstream gradients, then the operands of `function`; others have no gradient.
    """

    def gradients(*arguments: Tensor) -> Gradients:
        return pull_back(function, arguments[:upstreams], arguments[upstreams:])

    def save(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.save_for_backward(*inputs[: upstreams + operands])
        ctx.others = len(inputs) - upstreams - operands

    def differentiate(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*pull_back(gradients, upstream, ctx.saved_tensors), *[None] * ctx.others)

    op.register_autograd(differentiate, setup_context=save)

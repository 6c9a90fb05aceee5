"""Serve torch.func and derivatives of higher order, which the chunked operators leave to the exact recurrences.

A chunked operator has a first derivative in reverse mode, of its own making, and nothing else that autograd could look
into. The exact recurrence consists of torch's functions, so that every transform goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor, ...]


def transforms_active() -> bool:
    """Return whether a transform of torch.func, or a level of forward-mode differentiation, is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def gradient_is_differentiated() -> bool:
    """Tell, in a backward pass, whether a transform asks for more than a batch of first derivatives."""
    functorch = torch._C._functorch
    levels = [level.key() for level in functorch.get_interpreter_stack() or ()]
    if forward_ad._current_level >= 0 or any(key != functorch.TransformType.Vmap for key in levels):
        return True
    return bool(levels) and torch.is_grad_enabled()


def pull_back(function: Callable[..., Any], upstreams: Sequence[Tensor], operands: Sequence[Tensor]) -> Gradients:
    """Return the gradients of the operands of `function`, themselves differentiable by every transform."""
    gradients: Gradients = torch.func.vjp(function, *operands)[1](tuple(upstreams))
    return gradients


def register_second_order(op: Any, function: Callable[..., Any], upstreams: int, operands: int) -> None:
    """Teach `op`, which computes the gradients of `function`, its own: those of `pull_back`, of any order.

    The first arguments of `op` are the upstream gradients, then the operands of `function`; the rest has no gradient.
    """

    def gradients(*arguments: Tensor) -> Gradients:
        return pull_back(function, arguments[:upstreams], arguments[upstreams:])

    def save(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.save_for_backward(*inputs[: upstreams + operands])
        ctx.others = len(inputs) - upstreams - operands

    def differentiate(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*pull_back(gradients, upstream, ctx.saved_tensors), *[None] * ctx.others)

    op.register_autograd(differentiate, setup_context=save)

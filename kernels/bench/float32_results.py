"""Run the variants of 16-bit operands with results in float32: the same kernels, their last rounding left out.

Rounding an exact output to bfloat16 alone makes an error of 1.7e-3, which hides what the kernels themselves lose.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from cases import CaseOperands
from torch import Tensor
from variants import Variant, backend_of

Results = tuple[Tensor, tuple[Tensor, ...]]


def run_precisely(variant: Variant, operands: CaseOperands, upstream: Tensor | None = None) -> Results:
    """Return a variant's output and, for an upstream gradient, the gradients of all operands that it reads.

    In float32 for the kernels of this project and of the peer, but for the gradient of the peer's values; as they are
    for variants in plain torch.
    """
    half = operands.query.dtype.itemsize == 2
    with torch.set_grad_enabled(upstream is not None):
        if half and backend_of(variant, operands) == "triton":
            with wide_kernels() as kept:
                output, gradients = _run(variant, operands, upstream)
            return output, tuple(kept) or gradients
        if half and variant.name == "fla":
            if upstream is None:
                with wide_peer():
                    return _run(variant, operands, None)
            # it casts queries and keys to float16 whatever they are, and their gradients to what they were
            wide = operands._replace(query=operands.query.float(), key=operands.key.float())
            return _run(variant, wide, upstream)
        return _run(variant, operands, upstream)


def _run(variant: Variant, operands: CaseOperands, upstream: Tensor | None) -> Results:
    if upstream is None:
        return variant.run(operands), ()
    leaves = operands.leaves()
    output = variant.run(leaves)
    wanted = [leaves[place] for place in variant.reads]
    return output.detach(), torch.autograd.grad(output, wanted, upstream.to(output.dtype))


@contextmanager
def wide_kernels() -> Iterator[list[Tensor]]:
    """Let our kernels write float32 wherever they would round; keep the gradients that autograd would round."""
    mesa_kernels: Any = importlib.import_module("mesa_kernels")
    launch: Any = importlib.import_module("mesa_kernels.launch")
    fresh, solve, backward = launch.fresh, launch.solve, mesa_kernels.backward
    kept: list[Tensor] = []
    solutions: list[Tensor] = []

    def wide(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        result = dtype.is_floating_point and len(shape) == 4  # the states' float16 planes have a dimension more
        return fresh(like, *shape, dtype=torch.float32 if result else dtype)

    def solved(*arguments: Any, **settings: Any) -> Any:
        results = solve(*arguments, **settings)
        solutions[:] = [results[0]]
        return results

    def kept_backward(upstream: Tensor, *arguments: Any, **settings: Any) -> Any:
        query = arguments[2]
        results = backward(upstream.to(query.dtype), *arguments, **settings)
        kept[:] = [*solutions, *results[1:6]]
        return results

    with (
        patch.object(launch, "fresh", wide),
        patch.object(launch, "solve", solved),
        patch.object(mesa_kernels, "backward", kept_backward),
    ):
        yield kept


@contextmanager
def wide_peer() -> Iterator[None]:
    """Let the peer's kernels write their output in float32 instead of the values' bfloat16."""
    empty_like = torch.empty_like

    def wide(like: Tensor, **settings: Any) -> Tensor:
        if like.dtype == torch.bfloat16:
            settings.setdefault("dtype", torch.float32)
        return empty_like(like, **settings)

    with patch.object(torch, "empty_like", wide):
        yield

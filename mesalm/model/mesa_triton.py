"""Call the GPU kernels of the package mesa_kernels, if it is installed.

A decoding step is a custom operator of its own, so that torch.compile does not look inside. It has no gradient: if one
is needed, a single token is solved densely in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .mesa_solver import Factors, Limits, Solving
from .operator_records import Operands, Results, Upstreams, register
from .operator_transforms import transforms_active


def why_not(device: str, dtype: torch.dtype, key_size: int, value_size: int) -> str:
    """Return in a few words why the kernels cannot run a call, or an empty string if they can."""
    try:
        from mesa_kernels import supports
    except ImportError:
        return "the package mesa_kernels is not installed"
    return supports(device=device, dtype=dtype, key_size=key_size, value_size=value_size)[1]


def _kernels() -> Any:
    try:
        import mesa_kernels
    except ImportError as missing:
        raise RuntimeError(
            "backend 'triton': the package mesa_kernels is not installed; use backend='torch'"
        ) from missing
    return mesa_kernels


def forward(operands: Operands, solving: Solving, keep: bool) -> tuple[Results, Factors]:
    """Compute mesa attention; see `mesa_kernels.launch.forward`. There are no factors to keep."""
    results = Results(*_kernels().forward(*operands, **solving.limits._asdict()))
    return results, Factors.nothing(results.solution)


def backward(
    upstreams: Upstreams, operands: Operands, solution: Tensor, factors: Factors, solving: Solving
) -> Operands:
    """Compute the gradients of the operands; see `mesa_kernels.launch.backward`."""
    return Operands(*_kernels().backward(*upstreams, *operands, solution, **solving.limits._asdict()))


def _step(operands: Operands, limits: Limits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output, state, solution, steps = _kernels().step(*operands, **limits._asdict())
    return output, state, solution, steps


def _step_shapes(operands: Operands, limits: Limits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query = operands.query
    B, T, H, K = query.shape
    G, V = operands.value.shape[2:]
    single = torch.float32
    return (
        query.new_empty(B, T, H, V),
        query.new_empty(B, G, K, K + V, dtype=single),
        query.new_empty(B, T, H, K, dtype=single),
        query.new_empty(B, T, H, dtype=torch.int32),
    )


_step_op = register("mesa_step", _step, _step_shapes)


def mesa_step(operands: Operands, limits: Limits) -> Results:
    """Advance sequences by one token, without gradients.

    The final gram and cross are views of one tensor `[B, G, K, K + V]`, the layout of a cache. Steps are 0 where
    conjugate gradients did not converge and the system was factored instead.
    """
    output, state, solution, steps = _step_op(*operands, *limits)
    K = operands.query.shape[-1]
    return Results(output, state[..., :K], state[..., K:], solution, steps)


def beside(gram: Tensor, cross: Tensor) -> Tensor:
    """Concatenate gram `[B, G, K, K]` and cross `[B, G, K, V]`, without a copy if they already share a tensor."""
    K, V = cross.shape[-2:]
    if torch.compiler.is_compiling() or transforms_active() or gram.requires_grad or cross.requires_grad:
        return torch.cat((gram, cross), dim=-1)  # the compiler fuses the copy and has no storage to inspect
    follows = cross.storage_offset() == gram.storage_offset() + K and gram.stride() == cross.stride()
    if (
        not follows
        or gram.stride(-2) != K + V
        or gram.untyped_storage().data_ptr() != cross.untyped_storage().data_ptr()
    ):
        return torch.cat((gram, cross), dim=-1)
    return gram.as_strided((*gram.shape[:-1], K + V), gram.stride(), gram.storage_offset())

"""Take one step of decoding on the GPU kernels: an operator of its own, which torch.compile sees whole.

It has no gradient: where one is asked for, a single token is a dense solve in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .mesa_chunked import NAMESPACE
from .mesa_triton import run_kernels
from .operator_transforms import transforms_active


def _step(*arguments: Any) -> tuple[Tensor, ...]:
    return run_kernels("step", *arguments)


_step_op = torch.library.custom_op(
    f"{NAMESPACE}::mesa_step",
    _step,
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor log_forget, Tensor input_gate, Tensor ridge, Tensor gram, "
        "Tensor cross, float tolerance, int max_steps) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)


@_step_op.register_fake
def _step_shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    single = torch.float32
    return (
        query.new_empty(B, T, H, V),
        query.new_empty(B, G, K, K + V, dtype=single),
        query.new_empty(B, T, H, K, dtype=single),
        query.new_empty(B, T, H, dtype=torch.int32),
    )


def mesa_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Advance sequences by one token; arguments and results as in `mesa_chunked`, with T = 1 and no gradients.

    The final gram and cross lie beside one another in one tensor `[B, G, K, K + V]`, as a cache holds them. Steps are 0
    where conjugate gradients did not end and the system was factored.
    """
    operands = (query, key, value, log_forget, input_gate, ridge, gram, cross)
    output, state, solution, steps = _step_op(*operands, tolerance, max_steps)
    K = query.shape[-1]
    return output, state[..., :K], state[..., K:], solution, steps


def beside(gram: Tensor, cross: Tensor) -> Tensor:
    """Lay gram `[B, G, K, K]` and cross `[B, G, K, V]` beside one another, without a copy where they already lie so."""
    K, V = cross.shape[-2:]
    if torch.compiler.is_compiling() or transforms_active() or gram.requires_grad or cross.requires_grad:
        return torch.cat((gram, cross), dim=-1)  # the compiler fuses the copy, and sees no memory
    follows = cross.storage_offset() == gram.storage_offset() + K and gram.stride() == cross.stride()
    if (
        not follows
        or gram.stride(-2) != K + V
        or gram.untyped_storage().data_ptr() != cross.untyped_storage().data_ptr()
    ):
        return torch.cat((gram, cross), dim=-1)
    return gram.as_strided((*gram.shape[:-1], K + V), gram.stride(), gram.storage_offset())

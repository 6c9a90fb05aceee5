"""Choose a back end for a call of mesa attention and run it; no other file tells back ends apart.

"torch" and "triton" run behind one operator registered with torch.library. "exact" is differentiated by autograd, and
so are second derivatives of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chunk_states import chunk_count, chunk_length, compute_dtype
from .mesa_chunked import backward as torch_backward
from .mesa_chunked import forward as torch_forward
from .mesa_exact import mesa_exact
from .mesa_solver import Factors, Solving
from .mesa_triton import backward as triton_backward
from .mesa_triton import forward as triton_forward
from .mesa_triton import mesa_step, why_not
from .operator_inputs import Layout, check_choice, exact_for_transforms
from .operator_records import Operands, Results, Upstreams, register, split
from .operator_transforms import gradient_is_differentiated, pull_back, register_second_order

BACKENDS = ("auto", "exact", "torch", "triton")
FORWARD = {"torch": torch_forward, "triton": triton_forward}
BACKWARD = {"torch": torch_backward, "triton": triton_backward}


def choose_backend(backend: str, method: str, query: Tensor, layout: Layout) -> str:
    """Return the back end to use; raise ValueError if the requested one cannot run this call."""
    check_choice("backend", backend, BACKENDS)
    backend = exact_for_transforms(backend)
    if backend == "auto" and (method != "auto" or query.device.type == "cpu"):
        return "torch"
    if backend in ("torch", "exact"):
        return backend
    reason = why_not(query.device.type, query.dtype, layout.K, layout.V)
    if backend == "auto":
        return "torch" if reason else "triton"
    if reason:
        raise ValueError(f"backend is 'triton', which cannot run this call ({reason}): must be 'auto' or 'torch'")
    return "triton"


def run_backend(operands: Operands, solving: Solving) -> tuple[Results, str]:
    """Compute the results and name the back end that ran; a single token may use another than chunks do."""
    B, T, H, _ = operands.query.shape
    backend, gradients = solving.backend, torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    if backend != "exact" and T > 1 and B > 0:
        keep = backend == "torch" and gradients
        return split(_forward_op(*operands, *solving, keep), Results, Factors)[0], backend
    if backend == "triton" and T == 1 and B > 0 and not gradients:
        return mesa_step(operands, solving.limits), backend
    steps = torch.zeros(B, chunk_count(T), H, dtype=torch.int32, device=operands.query.device)
    return Results(*mesa_exact(operands), steps), "exact" if backend == "exact" else "torch"


def _forward(operands: Operands, solving: Solving, keep: bool) -> tuple[Results, Factors]:
    return FORWARD[solving.backend](operands, solving, keep)


def _backward(up: Upstreams, operands: Operands, solution: Tensor, factors: Factors, solving: Solving) -> Operands:
    return BACKWARD[solving.backend](up, operands, solution, factors, solving)


def _forward_shapes(operands: Operands, solving: Solving, keep: bool) -> tuple[Results, Factors]:
    query = operands.query
    B, T, H, K = query.shape
    G, V = operands.value.shape[2:]
    dtype, chunk = compute_dtype(query.dtype), solving.chunk
    P = G * B * chunk_count(T, chunk)
    results = Results(
        query.new_empty(B, T, H, V),
        query.new_empty(B, G, K, K, dtype=dtype),
        query.new_empty(B, G, K, V, dtype=dtype),
        query.new_empty(B, T, H, K, dtype=dtype),
        query.new_empty(B, chunk_count(T), H, dtype=torch.int32),
    )
    shapes = ((P, K, K), (P, chunk_length(T, chunk), K), (P,)) if keep else ((0,), (0,), (0,))
    return results, Factors(*(query.new_empty(shape, dtype=dtype) for shape in shapes))


def _backward_shapes(upstreams: Upstreams, operands: Operands, *_: Any) -> Operands:
    return Operands(*(x.new_empty(x.shape) for x in operands))


_forward_op = register("mesa_forward", _forward, _forward_shapes)
_backward_op = register("mesa_backward", _backward, _backward_shapes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    operands, ctx.solving, _ = split(inputs, Operands, Solving, bool)
    results, factors = split(output, Results, Factors)
    ctx.save_for_backward(*operands, results.solution, *factors)
    ctx.mark_non_differentiable(results.solution, results.steps, *factors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    operands, solution, factors = split(ctx.saved_tensors, Operands, Tensor, Factors)
    asked, _ = split(incoming, Results, Factors)
    B, T, H, _K = operands.query.shape
    V = operands.value.shape[-1]
    upstreams = Upstreams(
        operands.query.new_zeros(B, T, H, V) if asked.output is None else asked.output,
        torch.zeros_like(operands.gram) if asked.gram is None else asked.gram,
        torch.zeros_like(operands.cross) if asked.cross is None else asked.cross,
    )
    if gradient_is_differentiated():
        gradients = pull_back(_exact, upstreams, operands)
    else:
        gradients = _backward_op(*upstreams, *operands, solution, *factors, *ctx.solving)
    return *gradients, *[None] * len(Solving._fields), None


def _exact(*operands: Tensor) -> tuple[Tensor, ...]:
    return mesa_exact(Operands(*operands))[:3]


_forward_op.register_autograd(_differentiate, setup_context=_save)
register_second_order(_backward_op, _exact, upstreams=len(Upstreams._fields), operands=len(Operands._fields))

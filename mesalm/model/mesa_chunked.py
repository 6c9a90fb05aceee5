"""Compute mesa attention chunk by chunk, with gradients by implicit differentiation.

Everything works on problems scaled by the ridge (`mesa_problems`); inputs and outputs are in the caller's units.

Backward, with L = diag(ridge) and d_t the gradient of o_t: y_t = (H_t + L)^-1 G_t d_t is the gradient of q_t,
-sum_t x_t * y_t that of the ridge, and `chunk_gradients` carries both through the states. Nothing of size T * K * K
is stored: states at chunk boundaries are recomputed, and only x and the shared factors are saved (the kernels: only x).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    CHUNK,
    chunk_count,
    chunk_length,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    scan_states,
    to_chunks,
    without_autocast,
)
from .mesa_exact import mesa_exact
from .mesa_problems import cut_problems
from .mesa_solver import Factors, Solving, solve
from .mesa_triton import run_kernels
from .operator_records import Operands, Results, register, split
from .operator_transforms import gradient_is_differentiated, pull_back, register_second_order


class Upstreams(NamedTuple):
    """The upstream gradients of the output and of the final states."""

    upstream: Tensor
    gram_upstream: Tensor
    cross_upstream: Tensor


def forward(operands: Operands, solving: Solving, keep: bool) -> tuple[Results, Factors]:
    """Compute mesa attention and, if `keep` is set, the factors for `backward`; otherwise these are empty."""
    query, value = operands.query, operands.value
    if solving.backend == "triton":
        results = Results(*run_kernels("forward", *operands, limits=solving.limits))
        return results, Factors.nothing(results.solution)
    B, T = query.shape[:2]
    G, chunk = value.shape[2], solving.chunk
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        made = cut_problems(operands, dtype, chunk)
        rhs = to_chunks(query, G, dtype, chunk).mul_(made.inverse_root)
        x, steps, factors = solve(made, rhs, solving)
        output = read_states(x, made.key, made.value * made.input_gate, made.cross, made.decay)
        solution = x.mul_(made.inverse_root)
    by_token = from_chunks(steps.unsqueeze(-1), B, T, G, steps.dtype, chunk).squeeze(-1)
    results = Results(
        from_chunks(output, B, T, G, query.dtype, chunk),
        made.last_gram,
        made.last_cross,
        from_chunks(solution, B, T, G, dtype, chunk),
        torch.stack([part.amax(1) for part in by_token.split(CHUNK, 1)], 1),
    )
    return results, factors if keep else Factors.nothing(rhs)


def backward(
    upstreams: Upstreams, operands: Operands, solution: Tensor, factors: Factors, solving: Solving
) -> Operands:
    """Compute the gradients of the operands from the solution and the factors that `forward` returned."""
    if solving.backend == "triton":
        return Operands(*run_kernels("backward", *upstreams, *operands, solution, limits=solving.limits))
    B, T, _, K = operands.query.shape
    G, chunk = operands.key.shape[2], solving.chunk
    dtype = compute_dtype(operands.query.dtype)
    with without_autocast(operands.query.device):
        made = cut_problems(operands, dtype, chunk)
        decay, inverse_root = made.decay, made.inverse_root
        d = to_chunks(upstreams.upstream, G, dtype, chunk)
        gated = made.value * made.input_gate
        # b_t = G_t d_t is the read-out with keys and values exchanged.
        rhs = read_states(d, gated, made.key, made.cross.mT, decay)
        y = solve(made, rhs, solving, factors).x
        x = to_chunks(solution, G, dtype, chunk).div_(inverse_root)

        local_cross, local_gram = local_adjoints(x, d, y, decay)
        assert local_gram is not None
        root = operands.ridge.to(dtype).sqrt()
        row, outer = root.unsqueeze(-1), root.unsqueeze(-1) * root.unsqueeze(-2)
        last_gram = 0.5 * (upstreams.gram_upstream + upstreams.gram_upstream.mT).to(dtype) * outer
        gram_end, d_gram = scan_states(local_gram, decay.whole, last_gram, backward=True)
        cross_end, d_cross = scan_states(
            local_cross, decay.whole, upstreams.cross_upstream.to(dtype) * row, backward=True
        )
        tokens = token_gradients(
            x,
            d,
            y,
            made.key,
            made.value,
            made.input_gate,
            decay,
            made.cross,
            made.gram,
            cross_end,
            gram_end,
        )
        d_query = y.mul_(inverse_root)
        d_ridge = -(x.mul_(inverse_root) * d_query).view(G, -1, K).sum(1)
        d_gate = from_chunks(tokens.input_gate, B, T, G, operands.input_gate.dtype, chunk).squeeze(-1)
        d_log = from_chunks(tokens.log_forget, B, T, G, operands.log_forget.dtype, chunk).squeeze(-1)
    return Operands(
        query=from_chunks(d_query, B, T, G, operands.query.dtype, chunk),
        key=from_chunks(tokens.key.mul_(inverse_root), B, T, G, operands.key.dtype, chunk),
        value=from_chunks(tokens.value, B, T, G, operands.value.dtype, chunk),
        log_forget=d_log.masked_fill(is_restart(operands.log_forget, dtype), 0.0),
        input_gate=d_gate,
        ridge=d_ridge.to(operands.ridge.dtype),
        gram=d_gram.div_(outer).to(operands.gram.dtype),
        cross=d_cross.div_(row).to(operands.cross.dtype),
    )


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


_forward_op = register("mesa_forward", forward, _forward_shapes)
_backward_op = register("mesa_backward", backward, _backward_shapes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    operands, ctx.solving, _ = split(inputs, Operands, Solving, bool)
    results, factors = split(output, Results, Factors)
    ctx.save_for_backward(*operands, results.solution, *factors)
    ctx.mark_non_differentiable(results.solution, results.steps, *factors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    operands, solution, factors = split(ctx.saved_tensors, Operands, Tensor, Factors)
    asked, _ = split(gradients, Results, Factors)
    B, T, H, _K = operands.query.shape
    V = operands.value.shape[-1]
    upstreams = Upstreams(
        operands.query.new_zeros(B, T, H, V) if asked.output is None else asked.output,
        torch.zeros_like(operands.gram) if asked.gram is None else asked.gram,
        torch.zeros_like(operands.cross) if asked.cross is None else asked.cross,
    )
    if gradient_is_differentiated():
        found = pull_back(_exact, upstreams, operands)
    else:
        found = _backward_op(*upstreams, *operands, solution, *factors, *ctx.solving)
    return *found, *[None] * len(Solving._fields), None


def _exact(*operands: Tensor) -> tuple[Tensor, ...]:
    output, gram, cross, _ = mesa_exact(Operands(*operands))
    return output, gram, cross


_forward_op.register_autograd(_differentiate, setup_context=_save)
register_second_order(_backward_op, _exact, upstreams=len(Upstreams._fields), operands=len(Operands._fields))


def wants_gradients(operands: Operands) -> bool:
    """Return whether a gradient of any operand may be needed."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in operands)


def mesa_chunked(operands: Operands, solving: Solving) -> Results:
    """Compute mesa attention in chunks, differentiably, by an operator registered with torch.library; B, T >= 1.

    Gradients flow through the output and the final states. solving.backend: "torch", or "triton" for the GPU kernels,
    which compute the same with another algorithm.
    """
    keep = wants_gradients(operands) and solving.backend != "triton"
    results: Results = split(_forward_op(*operands, *solving, keep), Results, Factors)[0]
    return results

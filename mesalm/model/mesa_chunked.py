"""Compute mesa attention chunk by chunk, with gradients by implicit differentiation.

Everything works on problems scaled by the ridge (`mesa_problems`) and scales back at the doors.

Backward, for the gradient d_t of o_t: y_t = (H_t + L)^-1 G_t d_t is the gradient of q_t, -sum_t x_t * y_t
that of the ridge, and `chunk_gradients` carries both through the states. Nothing of size T * K * K is held:
states at chunk boundaries are rebuilt, and only x and the shared factors are kept, by the kernels only x.

The two functions are registered with torch.library under a namespace made from this package's name, so that
a second copy of the folder (remote code beside a checkpoint) registers names of its own.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    CHUNK,
    chunk_count,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    scan_adjoints,
    to_chunks,
)
from .mesa_exact import mesa_exact
from .mesa_problems import cut_problems
from .mesa_solver import Factors, solve
from .mesa_triton import run_kernels
from .operator_transforms import gradient_is_differentiated, pull_back, register_second_order

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


def forward(
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
    method: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, ...]:
    """Compute output, final gram, final cross, solutions `[B, T, H, K]`, steps `[B, N, H]` and the factors."""
    if backend == "triton":
        operands = (query, key, value, log_forget, input_gate, ridge, gram, cross)
        results = run_kernels("forward", *operands, tolerance=tolerance, max_steps=max_steps)
        return (*results, results[3].new_empty(0), results[3].new_empty(0))  # the kernels factor nothing
    B, T, H, _ = query.shape
    G, N = key.shape[2], chunk_count(T)
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        made = cut_problems(key, value, log_forget, input_gate, ridge, gram, cross, dtype)
        rhs = to_chunks(query, G, dtype).mul_(made.inverse_root)
        x, steps, factors = solve(made, rhs, tolerance, max_steps, method)
        output = read_states(x, made.key, made.value * made.input_gate, made.cross, made.decay)
        solution = x.mul_(made.inverse_root)
    by_head = steps.view(G, B, N, H // G, -1).amax(-1)
    return (
        from_chunks(output, B, T, G, query.dtype),
        made.last_gram,
        made.last_cross,
        from_chunks(solution, B, T, G, dtype),
        by_head.permute(1, 2, 0, 3).reshape(B, N, H).contiguous(),
        *(factors if keep else (rhs.new_empty(0), rhs.new_empty(0))),
    )


def backward(
    upstream: Tensor,
    gram_upstream: Tensor,
    cross_upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    solution: Tensor,
    carried: Tensor,
    gains: Tensor,
    tolerance: float,
    max_steps: int,
    method: str,
    backend: str,
) -> tuple[Tensor, ...]:
    """Compute the gradients of the eight tensor arguments of `forward`."""
    if backend == "triton":
        operands = (query, key, value, log_forget, input_gate, ridge, gram, cross, solution)
        upstreams = (upstream, gram_upstream, cross_upstream)
        return run_kernels("backward", *upstreams, *operands, tolerance=tolerance, max_steps=max_steps)
    B, T, _, K = query.shape
    G = key.shape[2]
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        made = cut_problems(key, value, log_forget, input_gate, ridge, gram, cross, dtype)
        decay, inverse_root = made.decay, made.inverse_root
        d = to_chunks(upstream, G, dtype)
        gated = made.value * made.input_gate
        # b_t = G_t d_t is the read-out with keys and values exchanged.
        rhs = read_states(d, gated, made.key, made.cross.mT, decay)
        y, _, _ = solve(made, rhs, tolerance, max_steps, method, Factors(carried, gains))
        x = to_chunks(solution, G, dtype).div_(inverse_root)

        local_cross, local_gram = local_adjoints(x, d, y, decay)
        assert local_gram is not None
        root = ridge.to(dtype).sqrt()
        row, outer = root.unsqueeze(-1), root.unsqueeze(-1) * root.unsqueeze(-2)
        last_gram = 0.5 * (gram_upstream + gram_upstream.mT).to(dtype) * outer
        gram_end, d_gram = scan_adjoints(local_gram, decay.whole, last_gram)
        cross_end, d_cross = scan_adjoints(local_cross, decay.whole, cross_upstream.to(dtype) * row)
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
        d_key = tokens.key.mul_(inverse_root)
        d_gate = from_chunks(tokens.input_gate, B, T, G, input_gate.dtype).squeeze(-1)
        d_log = from_chunks(tokens.log_forget, B, T, G, log_forget.dtype).squeeze(-1)
    return (
        from_chunks(d_query, B, T, G, query.dtype),
        from_chunks(d_key, B, T, G, key.dtype),
        from_chunks(tokens.value, B, T, G, value.dtype),
        d_log.masked_fill(is_restart(log_forget, dtype), 0.0),
        d_gate,
        d_ridge.to(ridge.dtype),
        d_gram.div_(outer).to(gram.dtype),
        d_cross.div_(row).to(cross.dtype),
    )


_OPERANDS = (
    "Tensor query, Tensor key, Tensor value, Tensor log_forget, Tensor input_gate, Tensor ridge, "
    "Tensor gram, Tensor cross"
)
_forward_op = torch.library.custom_op(
    f"{NAMESPACE}::mesa_forward",
    forward,
    mutates_args=(),
    schema=(
        f"({_OPERANDS}, float tolerance, int max_steps, str method, str backend, bool keep) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
_backward_op = torch.library.custom_op(
    f"{NAMESPACE}::mesa_backward",
    backward,
    mutates_args=(),
    schema=(
        f"(Tensor upstream, Tensor gram_upstream, Tensor cross_upstream, {_OPERANDS}, Tensor solution, "
        "Tensor carried, Tensor gains, float tolerance, int max_steps, str method, str backend) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@_forward_op.register_fake
def _forward_shapes(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    keep = rest[-1]
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    dtype = compute_dtype(query.dtype)
    P = G * B * chunk_count(T)
    shapes = ((P, K, K), (P, CHUNK, K)) if keep else ((0,), (0,))
    return (
        query.new_empty(B, T, H, V),
        query.new_empty(B, G, K, K, dtype=dtype),
        query.new_empty(B, G, K, V, dtype=dtype),
        query.new_empty(B, T, H, K, dtype=dtype),
        query.new_empty(B, chunk_count(T), H, dtype=torch.int32),
        *(query.new_empty(shape, dtype=dtype) for shape in shapes),
    )


@_backward_op.register_fake
def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[3:11])  # query to cross, as `backward` takes them


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, tolerance, max_steps, method, backend, _keep = inputs
    ctx.settings = (tolerance, max_steps, method, backend)
    ctx.save_for_backward(*operands, output[3], *output[5:])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, upstream: Tensor | None, gram: Tensor | None, cross: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    query, value = saved[0], saved[2]
    B, T, H, _K = query.shape
    if upstream is None:
        upstream = query.new_zeros(B, T, H, value.shape[-1])
    gram = torch.zeros_like(saved[6]) if gram is None else gram
    cross = torch.zeros_like(saved[7]) if cross is None else cross
    if gradient_is_differentiated():
        return (*pull_back(_exact, (upstream, gram, cross), saved[:8]), None, None, None, None, None)
    gradients = _backward_op(upstream, gram, cross, *saved, *ctx.settings)
    return (*gradients, None, None, None, None, None)


def _exact(*operands: Tensor) -> tuple[Tensor, ...]:
    return mesa_exact(*operands)[:3]


_forward_op.register_autograd(_differentiate, setup_context=_save)
register_second_order(_backward_op, _exact, upstreams=3, operands=8)


def wants_gradients(operands: tuple[Tensor, ...]) -> bool:
    """Tell whether a gradient of any of `operands` may be asked for."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in operands)


def mesa_chunked(
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
    method: str = "auto",
    backend: str = "torch",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute mesa attention in chunks, differentiably; `forward` as an operator known to torch.compile.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, ridge `[G, K]`, states
    `[B, G, K, K]` and `[B, G, K, V]`; B and T at least 1. Returns output `[B, T, H, V]`, final gram and cross,
    and, without gradients, the solutions `[B, T, H, K]` and the steps of every system `[B, N, H]` (int32). method: one
    of `mesa_price.METHODS`; "auto" prices each chunk and head, "shared" and "cg" are for measurements. backend:
    "torch", or "triton" for the kernels, which compute the same in a way of their own.
    """
    operands = (query, key, value, log_forget, input_gate, ridge, gram, cross)
    keep = wants_gradients(operands) and backend != "triton"
    settings = (tolerance, max_steps, method, backend)
    output, last_gram, last_cross, solution, steps, _, _ = _forward_op(*operands, *settings, keep)
    return output, last_gram, last_cross, solution, steps

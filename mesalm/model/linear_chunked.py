"""Compute gated linear attention chunk by chunk, with a custom backward, and token by token.

    G_t = gamma_t G_{t-1} + beta_t k_t v_t'      o_t = G_t' q_t

The mesa layer without its solve; the chunks, the states and their gradients are the same code.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    Decay,
    chunk_decay,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    scan_adjoints,
    scan_states,
    to_chunks,
)
from .operator_transforms import gradient_is_differentiated, pull_back, register_second_order

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


def linear_exact(
    query: Tensor, key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence as written, differentiable by autograd; shapes as in `linear_chunked`."""
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        q = query.to(dtype).reshape(B, T, G, H // G, K)
        k, v = key.to(dtype).unsqueeze(-1), value.to(dtype).unsqueeze(-2)
        gamma = log_forget.to(dtype).exp()[..., None, None]
        beta = input_gate.to(dtype)[..., None, None]
        G_t, outputs = cross.to(dtype).clone(), []
        for t in range(T):
            G_t = gamma[:, t] * G_t + beta[:, t] * k[:, t] * v[:, t]
            outputs.append(q[:, t] @ G_t)
        if T == 0:
            return query.new_zeros(B, T, H, V), G_t
        return torch.stack(outputs, 1).reshape(B, T, H, V).to(query.dtype), G_t


def _cut(
    key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Decay, Tensor, Tensor]:
    """Cut into problems and scan: keys, values, input gates, decay, cross at chunk starts, last cross."""
    G = key.shape[2]
    keys, values = to_chunks(key, G, dtype), to_chunks(value, G, dtype)
    gate = to_chunks(input_gate.unsqueeze(-1), G, dtype)
    decay = chunk_decay(to_chunks(log_forget.unsqueeze(-1), G, torch.float64).squeeze(-1), dtype)
    update = torch.bmm((keys * (gate * decay.end)).mT, values)
    starts, last = scan_states(update, decay.whole, cross.to(dtype))
    return keys, values, gate, decay, starts, last


def forward(
    query: Tensor, key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute output and final cross state."""
    B, T = query.shape[:2]
    G = key.shape[2]
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        keys, values, gate, decay, starts, last = _cut(key, value, log_forget, input_gate, cross, dtype)
        output = read_states(to_chunks(query, G, dtype), keys, values * gate, starts, decay)
    return from_chunks(output, B, T, G, query.dtype), last


def backward(
    upstream: Tensor,
    cross_upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    cross: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the six arguments of `forward`."""
    B, T = query.shape[:2]
    G = key.shape[2]
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        keys, values, gate, decay, starts, _ = _cut(key, value, log_forget, input_gate, cross, dtype)
        d, x = to_chunks(upstream, G, dtype), to_chunks(query, G, dtype)
        d_query = read_states(d, values * gate, keys, starts.mT, decay)
        local, _ = local_adjoints(x, d, None, decay)
        ends, d_cross = scan_adjoints(local, decay.whole, cross_upstream.to(dtype))
        tokens = token_gradients(x, d, None, keys, values, gate, decay, starts, None, ends, None)
        d_gate = from_chunks(tokens.input_gate, B, T, G, input_gate.dtype).squeeze(-1)
        d_log = from_chunks(tokens.log_forget, B, T, G, log_forget.dtype).squeeze(-1)
    return (
        from_chunks(d_query, B, T, G, query.dtype),
        from_chunks(tokens.key, B, T, G, key.dtype),
        from_chunks(tokens.value, B, T, G, value.dtype),
        d_log.masked_fill(is_restart(log_forget, dtype), 0.0),
        d_gate,
        d_cross.to(cross.dtype),
    )


_OPERANDS = "Tensor query, Tensor key, Tensor value, Tensor log_forget, Tensor input_gate, Tensor cross"
_forward_op = torch.library.custom_op(
    f"{NAMESPACE}::linear_forward",
    forward,
    mutates_args=(),
    schema=f"({_OPERANDS}) -> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    f"{NAMESPACE}::linear_backward",
    backward,
    mutates_args=(),
    schema=(
        f"(Tensor upstream, Tensor cross_upstream, {_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@_forward_op.register_fake
def _forward_shapes(
    query: Tensor, key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor
) -> tuple[Tensor, Tensor]:
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    return output, cross.new_empty(cross.shape, dtype=compute_dtype(query.dtype))


@_backward_op.register_fake
def _backward_shapes(
    upstream: Tensor,
    cross_upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    cross: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value, log_forget, input_gate, cross))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, cross: Tensor | None) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors
    query, value = saved[0], saved[2]
    if upstream is None:
        upstream = query.new_zeros(*query.shape[:3], value.shape[-1])
    cross = torch.zeros_like(saved[5]) if cross is None else cross
    if gradient_is_differentiated():
        return pull_back(linear_exact, (upstream, cross), saved)
    return _backward_op(upstream, cross, *saved)


_forward_op.register_autograd(_differentiate, setup_context=_save)
register_second_order(_backward_op, linear_exact, upstreams=2, operands=6)


def linear_chunked(
    query: Tensor, key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute gated linear attention in chunks, differentiably, as an operator known to torch.compile.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, cross `[B, G, K, V]`; B
    and T at least 1. Returns output `[B, T, H, V]` and the final cross state.
    """
    return _forward_op(query, key, value, log_forget, input_gate, cross)

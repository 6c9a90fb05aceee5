"""Compute gated linear attention chunk by chunk, with a custom backward, and token by token.

    G_t = gamma_t G_{t-1} + beta_t k_t v_t'      o_t = G_t' q_t

This is the mesa layer without its solve; chunks, states and their gradients use the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    CHUNK,
    Decay,
    chunk_decay,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    scan_states,
    to_chunks,
    without_autocast,
)
from .operator_records import register
from .operator_transforms import gradient_is_differentiated, pull_back, register_second_order


class LinearOperands(NamedTuple):
    """The tensors of one call of gated linear attention, or their gradients.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, initial state cross
    `[B, G, K, V]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    cross: Tensor


class LinearResults(NamedTuple):
    """The output `[B, T, H, V]` and the final state."""

    output: Tensor
    cross: Tensor


class LinearUpstreams(NamedTuple):
    """The upstream gradients of the output and of the final state."""

    upstream: Tensor
    cross_upstream: Tensor


def exact(write: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make a function that runs a recurrence token by token, by autograd, on the fields of `LinearOperands`.

    `write(state, k, v, gamma, beta)` returns the state `[B, G, K, V]` after a token with key `[B, G, K, 1]`, value
    `[B, G, 1, V]` and gates `[B, G, 1, 1]`.
    """

    def recur(
        query: Tensor, key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, cross: Tensor
    ) -> tuple[Tensor, Tensor]:
        B, T, H, K = query.shape
        G, V = value.shape[2:]
        dtype = compute_dtype(query.dtype)
        with without_autocast(query.device):
            q = query.to(dtype).reshape(B, T, G, H // G, K)
            k, v = key.to(dtype).unsqueeze(-1), value.to(dtype).unsqueeze(-2)
            gamma = log_forget.to(dtype).exp()[..., None, None]
            beta = input_gate.to(dtype)[..., None, None]
            G_t, outputs = cross.to(dtype).clone(), []
            for t in range(T):
                G_t = write(G_t, k[:, t], v[:, t], gamma[:, t], beta[:, t])
                outputs.append(q[:, t] @ G_t)
            if T == 0:
                return query.new_zeros(B, T, H, V), G_t
            return torch.stack(outputs, 1).reshape(B, T, H, V).to(query.dtype), G_t

    return recur


@exact
def linear_exact(state: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Decay the state and add the outer product of key and value."""
    return gamma * state + beta * k * v


def cut(
    operands: LinearOperands, dtype: torch.dtype, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor, Decay, Tensor, Tensor]:
    """Return keys, values, input gates and decay as problems, the cross states at chunk starts, and the final one."""
    G = operands.key.shape[2]
    keys, values = to_chunks(operands.key, G, dtype, chunk), to_chunks(operands.value, G, dtype, chunk)
    gate = to_chunks(operands.input_gate.unsqueeze(-1), G, dtype, chunk)
    decay = chunk_decay(to_chunks(operands.log_forget.unsqueeze(-1), G, torch.float64, chunk).squeeze(-1), dtype)
    update = torch.bmm((keys * (gate * decay.end)).mT, values)
    starts, last = scan_states(update, decay.whole, operands.cross.to(dtype))
    return keys, values, gate, decay, starts, last


def forward(operands: LinearOperands) -> LinearResults:
    """Compute output and final cross state."""
    query = operands.query
    B, T = query.shape[:2]
    G = operands.key.shape[2]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        keys, values, gate, decay, starts, last = cut(operands, dtype)
        output = read_states(to_chunks(query, G, dtype), keys, values * gate, starts, decay)
    return LinearResults(from_chunks(output, B, T, G, query.dtype), last)


def ungated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the output `[B, T, H, V]` without gates and initial state.

    One masked product over all pairs of tokens, o_t = sum_{s <= t} (q_t' k_s) v_s, meant for sequences of one chunk.
    Autograd and every function transform can differentiate it.
    """
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        q = query.to(dtype).view(B, T, G, H // G, K).permute(0, 2, 3, 1, 4)
        k, v = (x.to(dtype).transpose(1, 2).unsqueeze(2) for x in (key, value))
        earlier = torch.ones(T, T, dtype=dtype, device=query.device).tril()
        output = (q @ k.mT).mul_(earlier) @ v
        return output.permute(0, 3, 1, 2, 4).reshape(B, T, H, V).to(query.dtype).contiguous()


def backward(upstreams: LinearUpstreams, operands: LinearOperands) -> LinearOperands:
    """Compute the gradients of the operands."""
    query = operands.query
    B, T = query.shape[:2]
    G = operands.key.shape[2]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        keys, values, gate, decay, starts, _ = cut(operands, dtype)
        d, x = to_chunks(upstreams.upstream, G, dtype), to_chunks(query, G, dtype)
        d_query = read_states(d, values * gate, keys, starts.mT, decay)
        local, _ = local_adjoints(x, d, None, decay)
        ends, d_cross = scan_states(local, decay.whole, upstreams.cross_upstream.to(dtype), backward=True)
        tokens = token_gradients(x, d, None, keys, values, gate, decay, starts, None, ends, None)
        d_gate = from_chunks(tokens.input_gate, B, T, G, operands.input_gate.dtype).squeeze(-1)
        d_log = from_chunks(tokens.log_forget, B, T, G, operands.log_forget.dtype).squeeze(-1)
    return LinearOperands(
        query=from_chunks(d_query, B, T, G, query.dtype),
        key=from_chunks(tokens.key, B, T, G, operands.key.dtype),
        value=from_chunks(tokens.value, B, T, G, operands.value.dtype),
        log_forget=d_log.masked_fill(is_restart(operands.log_forget, dtype), 0.0),
        input_gate=d_gate,
        cross=d_cross.to(operands.cross.dtype),
    )


class Recurrence(NamedTuple):
    """The functions that compute a recurrence with one matrix state.

    exact: token by token, by autograd. forward: in chunks, an operator registered with torch.library, differentiable to
    any order; backward: its gradients. All take and return the fields of their records as flat arguments; the chunked
    ones need B >= 1 and T >= 1. ungated: a direct computation for one chunk without gates and states, None if there is
    none.
    """

    exact: Callable[..., tuple[Tensor, Tensor]]
    forward: Any
    backward: Any
    ungated: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


def make_recurrence(
    name: str,
    exact: Callable[..., tuple[Tensor, Tensor]],
    forward: Callable[[LinearOperands], LinearResults],
    backward: Callable[[LinearUpstreams, LinearOperands], LinearOperands],
    ungated: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Recurrence:
    """Register the chunked passes of a recurrence as differentiable operators called `name`."""
    forward_op = register(f"{name}_forward", forward, _forward_shapes)
    backward_op = register(f"{name}_backward", backward, _backward_shapes)

    def differentiate(ctx: Any, upstream: Tensor | None, cross: Tensor | None) -> tuple[Tensor, ...]:
        operands = LinearOperands(*ctx.saved_tensors)
        query, value = operands.query, operands.value
        upstreams = LinearUpstreams(
            query.new_zeros(*query.shape[:3], value.shape[-1]) if upstream is None else upstream,
            torch.zeros_like(operands.cross) if cross is None else cross,
        )
        if gradient_is_differentiated():
            return pull_back(exact, upstreams, operands)
        gradients: tuple[Tensor, ...] = backward_op(*upstreams, *operands)
        return gradients

    forward_op.register_autograd(differentiate, setup_context=_save)
    register_second_order(
        backward_op, exact, upstreams=len(LinearUpstreams._fields), operands=len(LinearOperands._fields)
    )
    return Recurrence(exact, forward_op, backward_op, ungated)


def _forward_shapes(operands: LinearOperands) -> LinearResults:
    query, value, cross = operands.query, operands.value, operands.cross
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    return LinearResults(output, cross.new_empty(cross.shape, dtype=compute_dtype(query.dtype)))


def _backward_shapes(upstreams: LinearUpstreams, operands: LinearOperands) -> LinearOperands:
    return LinearOperands(*(x.new_empty(x.shape) for x in operands))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


LINEAR = make_recurrence("linear", linear_exact, forward, backward, ungated)
"""Gated linear attention."""

"""Compute the gated delta rule chunk by chunk, with a custom backward, and token by token.

    G_t = gamma_t (I - beta_t k_t k_t') G_{t-1} + beta_t k_t v_t'      o_t = G_t' q_t

With the corrected values u_t = beta_t (v_t - gamma_t G_{t-1}' k_t) this is linear attention, G_t = gamma_t G_{t-1} +
k_t u_t'. A triangular system gives the corrected values of a chunk (Yang et al. 2024, arXiv 2412.06464, section 3.3).
States, chunks and most gradients are those of linear attention; docs/mathematics.md derives the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    Decay,
    apply_mask,
    chunk_decay,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    to_chunks,
    without_autocast,
)
from .linear_chunked import LinearOperands, LinearResults, LinearUpstreams, exact, make_recurrence


@exact
def delta_exact(state: Tensor, k: Tensor, v: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Decay the state, then move its output for the key towards the value."""
    faded = gamma * state
    return faded + k * (beta * (v - k.mT @ faded))


class Chunks(NamedTuple):
    """The problems of one call: tokens, the triangular system, the states at the chunks' starts and the final state.

    lower `[P, C, C]` is the matrix of the system for the corrected values (its unit diagonal is not stored). Times the
    state at the chunk's start, carry `[P, C, K]` is subtracted from them; transition `[P, K, K]` maps it to the end.
    """

    key: Tensor
    value: Tensor
    gate: Tensor
    decay: Decay
    lower: Tensor
    carry: Tensor
    corrected: Tensor
    transition: Tensor
    starts: Tensor
    last: Tensor


def _cut(operands: LinearOperands, dtype: torch.dtype) -> Chunks:
    """Cut the operands into problems, solve for the corrected values and scan the states."""
    G, K = operands.key.shape[2:]
    keys, values = to_chunks(operands.key, G, dtype), to_chunks(operands.value, G, dtype)
    gate = to_chunks(operands.input_gate.unsqueeze(-1), G, dtype)
    decay = chunk_decay(to_chunks(operands.log_forget.unsqueeze(-1), G, torch.float64).squeeze(-1), dtype)
    lower = apply_mask(torch.bmm(keys, keys.mT), decay.mask).mul_(gate).tril_(-1)
    wanted = torch.cat((values, keys * decay.start), dim=-1).mul_(gate)
    solved = torch.linalg.solve_triangular(lower, wanted, upper=False, unitriangular=True)
    own, carry = solved.split((values.shape[-1], K), dim=-1)
    faded = (keys * decay.end).mT
    transition = torch.bmm(faded, carry).neg_()
    transition.diagonal(dim1=-2, dim2=-1).add_(decay.whole.squeeze(-1))
    starts, last = _scan(torch.bmm(faded, own), transition, operands.cross.to(dtype))
    corrected = own.baddbmm(carry, starts, alpha=-1)
    return Chunks(keys, values, gate, decay, lower, carry, corrected, transition, starts, last)


def _scan(update: Tensor, transition: Tensor, initial: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Scan a state over the chunks: next = transition @ state + update.

    update `[P, K, V]`, transition `[P, K, K]`, initial `[B, G, K, V]`; `reverse` starts at the last chunk.
    Returns the state before each chunk, `[P, K, V]`, and the final state, `[B, G, K, V]`.
    """
    B, G, K, V = initial.shape
    by_chunk, factor = (x.view(G, B, -1, K, x.shape[-1]).flatten(0, 1) for x in (update, transition))
    state = initial.transpose(0, 1).reshape(G * B, K, V)
    states = torch.empty_like(by_chunk)
    places = range(by_chunk.shape[1])
    for n in reversed(places) if reverse else places:
        states[:, n] = state
        state = torch.baddbmm(by_chunk[:, n], factor[:, n], state)
    return states.view(-1, K, V), state.view(G, B, K, V).transpose(0, 1).contiguous()


def forward(operands: LinearOperands) -> LinearResults:
    """Compute output and final state."""
    query = operands.query
    B, T = query.shape[:2]
    G = operands.key.shape[2]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        chunks = _cut(operands, dtype)
        rows = to_chunks(query, G, dtype)
        output = read_states(rows, chunks.key, chunks.corrected, chunks.starts, chunks.decay)
    return LinearResults(from_chunks(output, B, T, G, query.dtype), chunks.last)


def backward(upstreams: LinearUpstreams, operands: LinearOperands) -> LinearOperands:
    """Compute the gradients of the operands."""
    query = operands.query
    B, T = query.shape[:2]
    G = operands.key.shape[2]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        chunks = _cut(operands, dtype)
        keys, values, gate, decay, starts = chunks.key, chunks.value, chunks.gate, chunks.decay, chunks.starts
        d, x = to_chunks(upstreams.upstream, G, dtype), to_chunks(query, G, dtype)
        d_corrected = torch.bmm(apply_mask(torch.bmm(x, keys.mT), decay.mask).mT, d)
        local = local_adjoints(x, d, None, decay)[0].baddbmm_(chunks.carry.mT, d_corrected, alpha=-1)
        ends, d_cross = _scan(local, chunks.transition.mT, upstreams.cross_upstream.to(dtype), reverse=True)
        d_corrected.baddbmm_(keys * decay.end, ends)
        solved = torch.linalg.solve_triangular(chunks.lower.mT, d_corrected, upper=True, unitriangular=True)

        # Each key reads the state like a query, but before its own token is written, so that part is subtracted.
        d_value = solved * gate
        rows, d = torch.cat((x, keys), dim=1), torch.cat((d, -d_value), dim=1)
        d_rows = read_states(d, chunks.corrected, keys, starts.mT, decay)
        d_query, d_key = d_rows.split((x.shape[1], keys.shape[1]), dim=1)
        own = (d_value * chunks.corrected).sum(-1, keepdim=True)
        one = torch.ones_like(gate)
        tokens = token_gradients(rows, d, None, keys, chunks.corrected, one, decay, starts, None, ends, None)
        d_key = (d_key + tokens.key).addcmul_(own, keys, value=2.0)
        before = read_states(keys, keys, chunks.corrected, starts, decay)
        before.addcmul_(keys.square().sum(-1, keepdim=True), chunks.corrected, value=-1.0)
        d_gate = (solved * (values - before)).sum(-1, keepdim=True)
        d_log = from_chunks(tokens.log_forget, B, T, G, operands.log_forget.dtype).squeeze(-1)
    return LinearOperands(
        query=from_chunks(d_query, B, T, G, query.dtype),
        key=from_chunks(d_key, B, T, G, operands.key.dtype),
        value=from_chunks(d_value, B, T, G, operands.value.dtype),
        log_forget=d_log.masked_fill(is_restart(operands.log_forget, dtype), 0.0),
        input_gate=from_chunks(d_gate, B, T, G, operands.input_gate.dtype).squeeze(-1),
        cross=d_cross.to(operands.cross.dtype),
    )


DELTA = make_recurrence("delta", delta_exact, forward, backward)
"""The gated delta rule."""

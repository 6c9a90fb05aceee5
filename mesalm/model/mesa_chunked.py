"""Compute mesa attention chunk by chunk, with gradients by implicit differentiation.

Everything works on problems scaled by the ridge (`mesa_problems`); inputs and outputs are in the caller's units.

Backward, with L = diag(ridge) and d_t the gradient of o_t: y_t = (H_t + L)^-1 G_t d_t is the gradient of q_t,
-sum_t x_t * y_t that of the ridge, and `chunk_gradients` carries both through the states. Nothing of size T * K * K
is stored: states at chunk boundaries are recomputed, and only x and the shared factors are saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    CHUNK,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    scan_states,
    to_chunks,
    without_autocast,
)
from .mesa_problems import cut_problems
from .mesa_solver import Factors, Solving, solve
from .operator_records import Operands, Results, Upstreams


def forward(operands: Operands, solving: Solving, keep: bool) -> tuple[Results, Factors]:
    """Compute mesa attention and, if `keep` is set, the factors for `backward`; otherwise these are empty."""
    query, value = operands.query, operands.value
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
            x, d, y, made.key, made.value, made.input_gate, decay, made.cross, made.gram, cross_end, gram_end
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

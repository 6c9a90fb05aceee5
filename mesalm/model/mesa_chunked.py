"""Compute mesa attention chunk by chunk, with gradients by implicit differentiation.

The ridge is scaled away first: with L = diag(ridge), the system (H + L) x = q is (H' + I) x' = q' for
k' = L^-1/2 k, q' = L^-1/2 q, x = L^-1/2 x', and the read-out is unchanged, G' x = G'' x' with G'' = L^-1/2 G.
Everything below works on the primed quantities and scales back at the doors.

Backward, for the gradient d_t of o_t: y_t = (H_t + L)^-1 G_t d_t is the gradient of q_t, -sum_t x_t * y_t
that of the ridge, and `chunk_gradients` carries both through the states. Nothing of size T * K * K is held:
states at chunk boundaries are rebuilt, and only x is kept.

The two functions are registered with torch.library under a namespace made from this package's name, so that
a second copy of the folder (remote code beside a checkpoint) registers names of its own.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_gradients import local_adjoints, token_gradients
from .chunk_states import (
    Decay,
    chunk_count,
    chunk_decay,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    repeat_heads,
    repeat_rows,
    scan_adjoints,
    scan_states,
    to_chunks,
)
from .mesa_cg import Systems, solve

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


class Problems(NamedTuple):
    """Hold the chunked operands and states of one call; shapes as in `chunk_states` and `mesa_cg`."""

    key: Tensor
    value: Tensor
    input_gate: Tensor
    decay: Decay
    gram: Tensor
    cross: Tensor
    last_gram: Tensor
    last_cross: Tensor
    inverse_root: Tensor

    def systems(self, rows: int) -> Systems:
        """Give the operands of the solver for problems of `rows` rows."""
        written = self.key * self.input_gate
        start = repeat_rows(self.decay.start, rows)
        return Systems(self.gram, self.key, written, self.decay.mask, start, self.inverse_root)


def cut_problems(
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    dtype: torch.dtype,
) -> Problems:
    """Cut key, value and gates into problems, scale by the ridge and scan the states of the chunks."""
    B, T, G, _ = key.shape
    N = chunk_count(T)
    root = ridge.to(dtype).sqrt()  # [G, K]
    inverse_root = repeat_heads(1.0 / root, B, N).unsqueeze(1)  # [P, 1, K]
    keys = to_chunks(key, G, dtype).mul_(inverse_root)
    values = to_chunks(value, G, dtype)
    gate = to_chunks(input_gate.unsqueeze(-1), G, dtype)
    decay = chunk_decay(to_chunks(log_forget.unsqueeze(-1), G, torch.float64).squeeze(-1), dtype)
    fading = (keys * (gate * decay.end)).mT
    row, column = root.unsqueeze(-1), root.unsqueeze(-2)
    symmetric = 0.5 * (gram + gram.mT).to(dtype) / (row * column)
    grams, last_gram = scan_states(torch.bmm(fading, keys), decay.whole, symmetric)
    crosses, last_cross = scan_states(torch.bmm(fading, values), decay.whole, cross.to(dtype) / row)
    return Problems(
        keys,
        values,
        gate,
        decay,
        grams,
        crosses,
        last_gram.mul_(row * column),
        last_cross.mul_(row),
        inverse_root,
    )


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute output, final gram, final cross, solutions `[B, T, H, K]` and steps `[B, N, H]`."""
    B, T, H, _ = query.shape
    G, N = key.shape[2], chunk_count(T)
    dtype = compute_dtype(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        made = cut_problems(key, value, log_forget, input_gate, ridge, gram, cross, dtype)
        rhs = to_chunks(query, G, dtype).mul_(made.inverse_root)
        x, steps = solve(made.systems(rhs.shape[1]), rhs, tolerance, max_steps)
        output = read_states(x, made.key, made.value * made.input_gate, made.cross, made.decay)
        solution = x.mul_(made.inverse_root)
    by_head = steps.view(G, B, N, H // G, -1).amax(-1)
    return (
        from_chunks(output, B, T, G, query.dtype),
        made.last_gram,
        made.last_cross,
        from_chunks(solution, B, T, G, dtype),
        by_head.permute(1, 2, 0, 3).reshape(B, N, H).contiguous(),
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
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the eight tensor arguments of `forward`."""
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
        y, _ = solve(made.systems(rhs.shape[1]), rhs, tolerance, max_steps)
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
    schema=f"({_OPERANDS}, float tolerance, int max_steps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    f"{NAMESPACE}::mesa_backward",
    backward,
    mutates_args=(),
    schema=(
        f"(Tensor upstream, Tensor gram_upstream, Tensor cross_upstream, {_OPERANDS}, Tensor solution, "
        "float tolerance, int max_steps) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@_forward_op.register_fake
def _forward_shapes(
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
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    dtype = compute_dtype(query.dtype)
    return (
        query.new_empty(B, T, H, V),
        query.new_empty(B, G, K, K, dtype=dtype),
        query.new_empty(B, G, K, V, dtype=dtype),
        query.new_empty(B, T, H, K, dtype=dtype),
        query.new_empty(B, chunk_count(T), H, dtype=torch.int32),
    )


@_backward_op.register_fake
def _backward_shapes(
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
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, ...]:
    operands = (query, key, value, log_forget, input_gate, ridge, gram, cross)
    return tuple(x.new_empty(x.shape) for x in operands)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.tolerance, ctx.max_steps = inputs
    ctx.save_for_backward(*operands, output[3])
    ctx.mark_non_differentiable(output[3], output[4])
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
    gradients = _backward_op(upstream, gram, cross, *saved, ctx.tolerance, ctx.max_steps)
    return (*gradients, None, None)


_forward_op.register_autograd(_differentiate, setup_context=_save)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute mesa attention in chunks, differentiably; `forward` as an operator known to torch.compile.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, ridge `[G, K]`, states
    `[B, G, K, K]` and `[B, G, K, V]`; B and T at least 1. Returns output `[B, T, H, V]`, final gram and cross,
    and, without gradients, the solutions `[B, T, H, K]` and the steps of every system `[B, N, H]` (int32).
    """
    return _forward_op(query, key, value, log_forget, input_gate, ridge, gram, cross, tolerance, max_steps)


def relative_residual(
    solution: Tensor,
    query: Tensor,
    key: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Measure |q - (H + ridge) x| / |q| in float64, and whether it certifies `tolerance`.

    Arguments as in `mesa_chunked`. Returns the largest relative residual `[B, N, H]` (float64) and
    `[B, N, H]` booleans: is every x within tolerance by the bound that the solver stops at?
    """
    B, T, H, _ = query.shape
    G, N = key.shape[2], chunk_count(T)
    if B * T == 0:
        nothing = torch.zeros(B, N, H, dtype=torch.float64, device=query.device)
        return nothing, nothing == 0
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        double = torch.float64
        none = key.new_zeros(*key.shape[:3], 1)
        no_cross = gram.new_zeros(*gram.shape[:3], 1)
        made = cut_problems(key, none, log_forget, input_gate, ridge, gram, no_cross, double)
        rhs = to_chunks(query, G, double).mul_(made.inverse_root)
        x = to_chunks(solution, G, double).div_(made.inverse_root)
        residual = rhs - made.systems(rhs.shape[1]).apply(x)
        bound = residual.norm(dim=-1) * made.inverse_root.amax(-1)
        certified = bound * (1.0 + tolerance) <= tolerance * (x * made.inverse_root).norm(dim=-1)
        size, whole = ((rows / made.inverse_root).norm(dim=-1) for rows in (residual, rhs))
        relative = torch.where(whole > 0, size / whole, size)

    def by_head(rows: Tensor) -> Tensor:
        return rows.view(G, B, N, H // G, -1).permute(1, 2, 0, 3, 4).flatten(2, 3)

    return by_head(relative).amax(-1), by_head(certified).all(-1)

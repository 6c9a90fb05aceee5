"""Run mesa attention as the peer does: in chunks, by a fixed number of conjugate-gradient steps.

This is the recipe of MesaNet (von Oswald et al. 2025, arXiv 2506.05233, appendix C and G.5) and of
flash-linear-attention's kernels, made as good as it gets in plain torch, so that a comparison with it is fair: float32
throughout, relative guards, the ridge scaled away, no work but the steps themselves, problems in blocks that stay
near a CPU's cache. It shares chunks and gradients with mesalm and differs in the solve alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesalm.model.chunk_gradients import local_adjoints, token_gradients
from mesalm.model.chunk_states import (
    Decay,
    apply_mask,
    chunk_count,
    chunk_decay,
    compute_dtype,
    from_chunks,
    is_restart,
    read_states,
    repeat_heads,
    repeat_rows,
    scan_states,
    to_chunks,
)

BLOCK_NUMBERS = 1 << 19
"""Numbers that a block of problems works on, on a CPU: what every product touches should lie in the cache."""


class Cut(NamedTuple):
    """The chunked operands, scaled by the ridge: P problems of C tokens, as in `mesalm.model.chunk_states`."""

    key: Tensor
    value: Tensor
    gate: Tensor
    decay: Decay
    gram: Tensor
    cross: Tensor
    inverse_root: Tensor


def cut(key: Tensor, value: Tensor, log_forget: Tensor, input_gate: Tensor, ridge: Tensor, dtype: torch.dtype) -> Cut:
    """Cut into problems and scan the states from zero; key `[B, T, G, K]`, value `[B, T, G, V]`, ridge `[G, K]`."""
    B, T, G, K = key.shape
    inverse_root = repeat_heads(ridge.to(dtype).rsqrt(), B, chunk_count(T)).unsqueeze(1)
    keys, values = to_chunks(key, G, dtype).mul_(inverse_root), to_chunks(value, G, dtype)
    gate = to_chunks(input_gate.unsqueeze(-1), G, dtype)
    decay = chunk_decay(to_chunks(log_forget.unsqueeze(-1), G, torch.float64).squeeze(-1), dtype)
    fading = (keys * (gate * decay.end)).mT
    gram, _ = scan_states(torch.bmm(fading, keys), decay.whole, keys.new_zeros(B, G, K, K))
    cross, _ = scan_states(torch.bmm(fading, values), decay.whole, keys.new_zeros(B, G, K, value.shape[-1]))
    return Cut(keys, values, gate, decay, gram, cross, inverse_root)


def solve(made: Cut, rhs: Tensor, steps: int) -> Tensor:
    """Take `steps` steps of conjugate gradients from zero on (H_t + I) x_t = rhs_t for all rows `[P, M, K]`."""
    P, M, K = rhs.shape
    C = made.key.shape[1]
    size = max(P, 1)
    if rhs.device.type == "cpu":
        size = max(4, BLOCK_NUMBERS // (K * K + 2 * C * K + C * C + M * (4 * K + C)))
    written, start = made.key * made.gate, repeat_rows(made.decay.start, M)
    x = torch.empty_like(rhs)
    for first in range(0, P, size):
        here = slice(first, first + size)
        x[here] = _iterate(
            made.gram[here], made.key[here], written[here], made.decay.mask[here], start[here], rhs[here], steps
        )
    return x


def _iterate(
    gram: Tensor, key: Tensor, written: Tensor, mask: Tensor, start: Tensor, rhs: Tensor, steps: int
) -> Tensor:
    info = torch.finfo(rhs.dtype)
    norm = torch.linalg.vector_norm(rhs, dim=-1, keepdim=True)
    r = rhs / norm.clamp(min=info.tiny)
    x, p = torch.zeros_like(r), r.clone()
    rr = torch.linalg.vector_norm(r, dim=-1, keepdim=True).square_()
    product, scratch = torch.empty_like(r), torch.empty_like(r)
    scores = r.new_empty(*r.shape[:2], key.shape[1])
    for _ in range(steps):
        apply_mask(torch.bmm(p, key.mT, out=scores), mask)
        torch.baddbmm(p, scores, written, out=product)
        product.baddbmm_(torch.mul(p, start, out=scratch), gram)
        curvature = torch.mul(p, product, out=scratch).sum(-1, keepdim=True)
        # a row this small would go on into denormal numbers, which cost a hundredfold on CPUs
        live = rr > 1e6 * info.tiny
        alpha = torch.where(live, rr / curvature, 0.0)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, product, value=-1)
        new = torch.linalg.vector_norm(r, dim=-1, keepdim=True).square_()
        p.mul_(torch.where(live, new / rr, 0.0)).add_(r)
        rr = new
    return x.mul_(norm)


class _Solved(torch.autograd.Function):
    """An implicit derivative: the adjoint is solved in the same way (docs/mathematics.md, "Backward")."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_forget: Tensor,
        input_gate: Tensor,
        ridge: Tensor,
        steps: int,
    ) -> Tensor:
        B, T, G = key.shape[:3]
        dtype = compute_dtype(query.dtype)
        made = cut(key, value, log_forget, input_gate, ridge, dtype)
        x = solve(made, to_chunks(query, G, dtype).mul_(made.inverse_root), steps)
        output = read_states(x, made.key, made.value * made.gate, made.cross, made.decay)
        ctx.save_for_backward(query, key, value, log_forget, input_gate, ridge, x)
        ctx.steps = steps
        return from_chunks(output, B, T, G, query.dtype)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, log_forget, input_gate, ridge, x = ctx.saved_tensors
        B, T, G, K = key.shape
        dtype = compute_dtype(query.dtype)
        made = cut(key, value, log_forget, input_gate, ridge, dtype)
        d = to_chunks(upstreams[0], G, dtype)
        rhs = read_states(d, made.value * made.gate, made.key, made.cross.mT, made.decay)
        y = solve(made, rhs, ctx.steps)
        local_cross, local_gram = local_adjoints(x, d, y, made.decay)
        assert local_gram is not None
        gram_end, _ = scan_states(local_gram, made.decay.whole, x.new_zeros(B, G, K, K), backward=True)
        cross_end, _ = scan_states(local_cross, made.decay.whole, x.new_zeros(B, G, K, value.shape[-1]), backward=True)
        states = (made.cross, made.gram, cross_end, gram_end)
        tokens = token_gradients(x, d, y, made.key, made.value, made.gate, made.decay, *states)
        d_query = y.mul_(made.inverse_root)
        d_ridge = -(x * made.inverse_root * d_query).view(G, -1, K).sum(1)
        d_log = from_chunks(tokens.log_forget, B, T, G, log_forget.dtype).squeeze(-1)
        return (
            from_chunks(d_query, B, T, G, query.dtype),
            from_chunks(tokens.key.mul_(made.inverse_root), B, T, G, key.dtype),
            from_chunks(tokens.value, B, T, G, value.dtype),
            d_log.masked_fill(is_restart(log_forget, dtype), 0.0),
            from_chunks(tokens.input_gate, B, T, G, input_gate.dtype).squeeze(-1),
            d_ridge.to(ridge.dtype),
            None,
        )


def mesa_fixed_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    steps: int = 30,
) -> Tensor:
    """Compute mesa attention with `steps` conjugate-gradient steps for every token, forward and backward.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, ridge `[G, K]`; returns
    `[B, T, H, V]` in query's dtype. Computes in float32, or float64 for float64 operands.
    """
    output: Tensor = _Solved.apply(query, key, value, log_forget, input_gate, ridge, steps)
    return output

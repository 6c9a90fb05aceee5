"""Compute out_t = S_t' x_t for the states of a chunk, S_t' = e^{c_t} S_0' + sum_s e^{c_t - c_s} beta_s w_s k_s'.

Forward, x is the solution, k the keys, w the values and S_0 the cross state: the output. Backward, x is the gradient
of the output, k the values, w the keys and S_0 the cross state, FLIPPED: the adjoint's right-hand side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import factor, load_decay, load_plain_state, load_rows, load_sums, locate


@triton.jit(do_not_specialize=["T", "N"])
def read_kernel(
    rows,  # [B, T, H, K]
    key,  # [B, T, G, K]
    value,  # [B, T, G, D]
    input_gate,  # [B, T, G]
    high,
    low,
    states,  # [P, 2, K, D] float16, as in `tiles.load_state`; FLIPPED: `[P, 2, D, K]`
    unit,  # [P] float32
    root,  # [G, K] float32: sqrt(ridge); FLIPPED: [G, D]
    out,  # [B, T, H, D]
    marks,  # [P, R] int32, read where MARKED: 1 for what is to be read
    T,
    G,
    R,
    N,
    K,
    D,
    FLIPPED: tl.constexpr,
    MARKED: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program per problem, query head and tile of BJ columns of the output."""
    p = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1)
    if MARKED:  # noqa: SIM102 - known when the kernel is compiled
        if tl.load(marks + p * R + r) == 0:
            return
    b, g, first, left = locate(p, T, G, N, C)
    head = g * R + r
    j = tl.program_id(2) * BJ + tl.arange(0, BJ)
    result = tl.zeros([C, BJ], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        x = load_rows(rows, b, first, head, G * R, K, i, T, C)
        k = load_rows(key, b, first, g, G, K, i, T, C)
        if FLIPPED:
            s = tl.trans(load_plain_state(states, unit, root + g * D, p, j, i, D, K))
        else:
            s = load_plain_state(states, unit, root + g * K, p, i, j, K, D)
        result = tl.dot(x, s, result, input_precision=DOT)
        scores = tl.dot(x, tl.trans(k), scores, input_precision=DOT)
    c, d = load_sums(high, low, p, C)
    result *= factor(c + d, FLOOR)[:, None]
    scores *= load_decay(high, low, input_gate, p, tl.arange(0, C), T, G, N, FLOOR, C)
    w = load_rows(value, b, first, g, G, D, j, T, C)
    result = tl.dot(scores, w, result, input_precision=DOT)
    t = tl.arange(0, C)
    out += ((b * T + first) * (G * R) + head) * D
    tl.store(out + t[:, None] * (G * R * D) + j[None, :], result, mask=(t < left)[:, None] & (j < D)[None, :])

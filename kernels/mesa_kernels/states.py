"""Carry a state over the chunks, forwards for the states themselves and backwards for their gradients.

Forwards S <- g_C S + sum_s e^{c_C - c_s} beta_s a_s b_s'; backwards S <- g_C S + sum_t e^{c_t} a_t b_t' over all query
heads of a key head, or, for the symmetric gram, minus half of that plus its transpose.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import factor, load_gate, load_last, load_rows, load_sums


@triton.jit
def scan_kernel(
    left,  # [B, T, heads, K]
    right,  # [B, T, heads, D]
    input_gate,  # [B, T, G], read forwards
    high,
    low,
    initial,  # [B, G, K, D] float32
    states,  # [P, K, D] float32: the state at each chunk's start (backwards: the gradient at its end)
    final,  # [B, G, K, D] float32
    T,
    G,
    R,
    N,
    K,
    D,
    REVERSE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program a tile `[BI, BJ]` of the state of one key head, through all chunks in turn."""
    bg = tl.program_id(2).to(tl.int64)
    b = bg // G
    g = (bg % G).to(tl.int32)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    tile = i[:, None] * D + j[None, :]
    inside = (i < K)[:, None] & (j < D)[None, :]
    state = tl.load(initial + bg * K * D + tile, mask=inside, other=0.0)
    for m in range(N):
        n = m
        if REVERSE:
            n = N - 1 - m
        p = bg * N + n
        first = n * C
        tl.store(states + p * K * D + tile, state, mask=inside)
        c, d = load_sums(high, low, p, C)
        end, rest = load_last(high, low, p, C)
        if REVERSE:
            weight = factor(c + d, FLOOR)
        else:
            beta = load_gate(input_gate, b, g, first, T - first, T, G, tl.arange(0, C))
            weight = factor((end - c) + (rest - d), FLOOR) * beta
        update = tl.zeros([BI, BJ], tl.float32)
        for turn in range(R * 2 if SYMMETRIC else R):
            one, other, r = left, right, turn
            if SYMMETRIC:  # both orders by one product in the code: two would not fit in registers
                r = turn // 2
                if turn % 2 == 1:
                    one, other = right, left
            head = g * R + r
            x = load_rows(one, b, first, head, G * R, K, i, T, C) * weight[:, None]
            y = load_rows(other, b, first, head, G * R, D, j, T, C)
            update = tl.dot(tl.trans(x), y, update, input_precision=DOT)
        if SYMMETRIC:
            update *= -0.5
        state = state * factor(end + rest, FLOOR) + update
    tl.store(final + bg * K * D + tile, state, mask=inside)

"""Carry a state over the chunks, forwards for the states themselves and backwards for their gradients.

Forwards S <- g_C S + sum_s e^{c_C - c_s} beta_s a_s b_s'; backwards S <- g_C S + sum_t e^{c_t} a_t b_t' over all query
heads of a key head, or, for the symmetric gram, minus half of that plus its transpose.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import ceil_power, factor, load_gate, load_last, load_rows, load_sums, split

TOP = 4096.0
"""No entry of a plane is above: far from the end of float16, and its low half far from the other."""
LEAST_GRAM = 16.0
"""The least bound on the gram's entries, so that the power of two is itself far from the end of float16."""
LEAST_CROSS = 1e-30


@triton.jit
def bound_entries(matrix, root, K, D, SQUARE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """Give the largest |entry| of a matrix `[K, D]` whose rows (SQUARE: and columns) are scaled by root `[K]`."""
    largest = tl.zeros([BI], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        row = tl.load(root + i, mask=i < K, other=0.0)
        for next in range(0, D, BJ):
            j = next + tl.arange(0, BJ)
            inside = (i < K)[:, None] & (j < D)[None, :]
            entries = tl.load(matrix + i[:, None] * D + j[None, :], mask=inside, other=0.0) * row[:, None]
            if SQUARE:
                entries *= tl.load(root + j, mask=j < K, other=0.0)[None, :]
            largest = tl.maximum(largest, tl.max(tl.abs(entries), 1))
    return tl.max(largest, 0)


@triton.jit(do_not_specialize=["T", "N"])
def scan_kernel(
    left,  # [B, T, heads, K]
    right,  # [B, T, heads, D]
    input_gate,  # [B, T, G], read forwards
    high,
    low,
    initial,  # [B, G, K, D] float32
    states,  # forwards [P, 2, K, D] float16: the scaled state at each chunk's start; backwards [P, K, D] float32: the
    # gradient of the plain state at its end
    final,  # [B, G, K, D] float32
    scale,  # [G, K] float32, read forwards
    growth,  # [P] float32, read forwards
    unit,  # [P] float32, written forwards
    T,
    G,
    R,
    N,
    K,
    D,
    REVERSE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    LEAST: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program a tile `[BI, BJ]` of the state of one key head, through all chunks in turn.

    Forwards states are stored scaled by the ridge, as two float16 planes over a power of two. It follows from a bound
    on all entries that every program knows, so that none waits for another. SYMMETRIC: the gram.
    """
    bg = tl.program_id(2).to(tl.int64)
    b = bg // G
    g = (bg % G).to(tl.int32)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    tile = i[:, None] * D + j[None, :]
    inside = (i < K)[:, None] & (j < D)[None, :]
    state = tl.load(initial + bg * K * D + tile, mask=inside, other=0.0)
    bound = 0.0
    if not REVERSE:
        bound = bound_entries(initial + bg * K * D, scale + g * K, K, D, SYMMETRIC, BI, BJ)
    for m in range(N):
        n = m
        if REVERSE:
            n = N - 1 - m
        p = bg * N + n
        first = n * C
        end, rest = load_last(high, low, p, C)
        if REVERSE:
            tl.store(states + p * K * D + tile, state, mask=inside)
        else:
            size = ceil_power(tl.maximum(bound, LEAST)) / TOP
            scaled = state * (tl.load(scale + g * K + i, mask=i < K, other=0.0) * (1.0 / size))[:, None]
            if SYMMETRIC:
                scaled *= tl.load(scale + g * K + j, mask=j < K, other=0.0)[None, :]
            upper, lower = split(scaled)
            tl.store(states + p * 2 * K * D + tile, upper, mask=inside)
            tl.store(states + p * 2 * K * D + K * D + tile, lower, mask=inside)
            tl.store(unit + p, size)  # the same from all tiles
            bound = bound * factor(end + rest, FLOOR) + tl.load(growth + p)
        c, d = load_sums(high, low, p, C)
        if REVERSE:
            weight = factor(c + d, FLOOR)
        else:
            beta = load_gate(input_gate, b, g, first, T - first, T, G, tl.arange(0, C))
            weight = factor((end - c) + (rest - d), FLOOR) * beta
        update = tl.zeros([BI, BJ], tl.float32)
        for turn in range(R * 2 if REVERSE and SYMMETRIC else R):
            one, other, r = left, right, turn
            if REVERSE and SYMMETRIC:  # both orders by one product in the code: two would not fit in registers
                r = turn // 2
                if turn % 2 == 1:
                    one, other = right, left
            head = g * R + r
            x = load_rows(one, b, first, head, G * R, K, i, T, C) * weight[:, None]
            y = load_rows(other, b, first, head, G * R, D, j, T, C)
            update = tl.dot(tl.trans(x), y, update, input_precision=DOT)
        if REVERSE and SYMMETRIC:
            update *= -0.5
        state = state * factor(end + rest, FLOOR) + update
    tl.store(final + bg * K * D + tile, state, mask=inside)

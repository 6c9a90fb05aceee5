"""Carry a state over the chunks, forwards for the states themselves and backwards for their gradients.

Forwards S <- g_C S + sum_s e^{c_C - c_s} beta_s a_s b_s'; backwards S <- g_C S + sum_t e^{c_t} a_t b_t' over all query
heads of a key head, or, for the symmetric gram, minus half of that plus its transpose.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import ceil_power, split

TOP = 4096.0
"""Upper bound on entries of a plane: far below the maximum of float16, with the low half far above its minimum."""
LEAST_GRAM = 16.0
"""Minimum bound on the gram's entries, so that the power of two itself is far from the minimum of float16."""
LEAST = 1e-30
"""The same for the other states."""


@triton.jit
def bound_entries(matrix, root, K, D, SQUARE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """Return the largest |entry| of a matrix `[K, D]` with rows (SQUARE: and columns) scaled by root `[K]`."""
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


@triton.jit
def load_tokens(
    x, b, first, head, heads: tl.constexpr, width: tl.constexpr, columns, T, C: tl.constexpr, BI: tl.constexpr
):
    """Load what `tiles.load_rows` loads, in x's own dtype."""
    t = tl.arange(0, C)
    x += ((b * T + first) * heads + head) * width
    place = t.to(tl.int64)[:, None] * (heads * width) + columns[None, :]
    inside = (t < T - first)[:, None]
    if width % BI != 0:
        inside = inside & (columns < width)[None, :]
    return tl.load(x + place, mask=inside, other=0.0)


@triton.jit
def cut(x):
    """Cut float32 into the bfloat16 number of its first 8 bits, and the rest."""
    high = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), x - high


@triton.jit
def multiply(x, y, total, DOT: tl.constexpr, FINE: tl.constexpr):
    """Add x' y to total, both `[C, ...]`, x in its own dtype, y float32.

    DOT "bfloat16": y, and x where it is not bfloat16, are cut in two parts, of 16 bits together; FINE: y in three. The
    left operand of a product is read from shared memory only if it comes there from memory.
    """
    x = tl.trans(x)
    if DOT != "bfloat16":
        return tl.dot(x.to(tl.float32), y, total, input_precision=DOT)
    upper, rest = cut(y)
    lower, last = cut(rest)
    if x.dtype == tl.bfloat16:
        high = x
    else:
        high, rest = cut(x.to(tl.float32))
        low = rest.to(tl.bfloat16)
        if FINE:
            total = tl.dot(low, lower, total)
        total = tl.dot(low, upper, total)
    if FINE:
        total = tl.dot(high, last.to(tl.bfloat16), total)
    total = tl.dot(high, lower, total)
    return tl.dot(high, upper, total)


@triton.jit
def measure_blocks(state, TOP: tl.constexpr, LEAST: tl.constexpr, BI: tl.constexpr, SIDE: tl.constexpr):
    """Return the powers of two `[BI / SIDE]` by which blocks of SIDE rows are divided for storage in float16."""
    largest = tl.max(tl.reshape(tl.max(tl.abs(state), 1), [BI // SIDE, SIDE]), 1)
    return ceil_power(tl.maximum(largest, LEAST)) / TOP


@triton.jit(do_not_specialize=["T", "N"])
def scan_kernel(
    left,  # [B, T, heads, K]
    right,  # [B, T, heads, D]
    weight,  # [P, C] float32: of every token, `gates`'s after, backwards before
    before,  # [P, C] float32
    initial,  # [B, G, K, D] float32
    states,  # forwards [P, 2, K, D] float16: the scaled state at each chunk's start; backwards [P, K, D], as in
    # `token_gradients.load_gradient`: the gradient of the plain state at its end
    final,  # [B, G, K, D] float32
    scale,  # [G, K] float32, read forwards
    growth,  # [P] float32, read forwards
    unit,  # forwards [P] float32, backwards as in `token_gradients.load_gradient`
    T,
    N,
    G: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,  # entry (i, j) of a state lies at i * ROW + j * COLUMN
    COLUMN: tl.constexpr,
    REVERSE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    LEAST: tl.constexpr,
    DOT: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program a tile `[BI, BJ]` of the state of one key head, through all chunks in turn; tiles of a head together.

    Forwards states are stored scaled by the ridge, as two float16 planes over a power of two. It follows from a bound
    on all entries that every program knows, so that none waits for another. SYMMETRIC: the gram.

    A turn is a chunk, backwards one of its query heads, and for the gram one order of the product. No load of tokens
    waits for the state, so all can be made turns ahead.
    """
    DOWN: tl.constexpr = (K + BI - 1) // BI
    ACROSS: tl.constexpr = (D + BJ - 1) // BJ
    place = tl.program_id(0)
    row = place % DOWN
    column = place // DOWN % ACROSS
    bg = (place // (DOWN * ACROSS)).to(tl.int64)
    b = bg // G
    g = (bg % G).to(tl.int32)
    i = row * BI + tl.arange(0, BI)
    j = column * BJ + tl.arange(0, BJ)
    tile = i.to(tl.int64)[:, None] * ROW + j.to(tl.int64)[None, :] * COLUMN
    inside = tl.full([BI, BJ], True, tl.int1)
    if K % BI != 0 or D % BJ != 0:
        inside = (i < K)[:, None] & (j < D)[None, :]
    state = tl.load(initial + bg * K * D + tile, mask=inside, other=0.0)
    bound = 0.0
    if not REVERSE:
        bound = bound_entries(initial + bg * K * D, scale + g * K, K, D, SYMMETRIC, BI, BJ)
    elif states.dtype.element_ty == tl.float16:
        down = row * (BI // SIDE) + tl.arange(0, BI // SIDE)
        blocks = down * (1 if ROW == 1 else tl.cdiv(D, SIDE)) + column * (tl.cdiv(K, SIDE) if ROW == 1 else 1)
    if SYMMETRIC and not REVERSE:
        state *= tl.load(scale + g * K + j, mask=j < K, other=1.0)[None, :]
    TURNS: tl.constexpr = 2 if REVERSE and SYMMETRIC else 1
    for turn in range(N * R * TURNS):
        m = turn // (R * TURNS)
        n = N - 1 - m if REVERSE else m
        p = bg * N + n
        decay = tl.load(before + p * C + C - 1)
        if REVERSE:
            if turn % (R * TURNS) == 0:
                if states.dtype.element_ty == tl.float16:
                    size = measure_blocks(state, TOP, LEAST, BI, SIDE)
                    units = unit + p * tl.cdiv(K, SIDE) * tl.cdiv(D, SIDE) + blocks
                    tl.store(units, size, mask=down < tl.cdiv(K, SIDE))
                    whole = tl.reshape(tl.broadcast_to((1.0 / size)[:, None], [BI // SIDE, SIDE]), [BI])
                    tl.store(states + p * K * D + tile, (state * whole[:, None]).to(tl.float16), mask=inside)
                else:
                    tl.store(states + p * K * D + tile, state, mask=inside)
            else:
                decay = 1.0
        else:
            more = tl.load(growth + p)
            size = ceil_power(tl.maximum(bound, LEAST)) / TOP
            rows = tl.load(scale + g * K + i, mask=i < K, other=0.0) * (1.0 / size)
            upper, lower = split(state * rows[:, None])
            tl.store(states + p * 2 * K * D + tile, upper, mask=inside)
            tl.store(states + p * 2 * K * D + K * D + tile, lower, mask=inside)
            tl.store(unit + p, size)  # the same from all tiles
            bound = bound * decay + more
        one, other, r = left, right, turn % R
        if TURNS == 2:  # both orders by one product in the code: two would not fit in registers
            r = turn // 2 % R
            if turn % 2 == 1:
                one, other = right, left
        first = n * C
        x = load_tokens(one, b, first, g * R + r, G * R, K, i, T, C, BI)
        y = load_tokens(other, b, first, g * R + r, G * R, D, j, T, C, BJ)
        y = y * tl.load(weight + p * C + tl.arange(0, C))[:, None]
        if REVERSE:
            if SYMMETRIC:
                y *= -0.5
            state = multiply(x, y, state * decay, DOT, False)
        else:
            if SYMMETRIC:
                y *= tl.load(scale + g * K + j, mask=j < K, other=1.0)[None, :]
            state = state * decay + multiply(x, y, tl.zeros([BI, BJ], tl.float32), DOT, SYMMETRIC)
    if SYMMETRIC and not REVERSE:
        state /= tl.load(scale + g * K + j, mask=j < K, other=1.0)[None, :]
    tl.store(final + bg * K * D + tile, state, mask=inside)

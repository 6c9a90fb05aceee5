"""Differentiate the states' part: gradients of keys, values and gates (docs/mathematics.md, "Backward").

One program a problem has solutions x, adjoints y, upstream d, keys k and values v, the states G and H at the chunk's
start and the gradients P and Q of both at its end; everything of size K is scaled by the ridge, so that the states are
taken as they are stored. Of a pair of source s and reader t, `[C, C]`, it makes the weights

    W = Z (k_s'x_t),  U = Z (v_s'd_t - k_s'y_t),

and from them, tile by tile of the columns, v's gradient W d + w k P and k's U x - W y + w (v P' + 2 k Q). A gate's is
the sum of what passes it: inside the chunk, from its start, to its end, or from the one to the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_scaled
from .tiles import ceil_power, factor, load_gate, load_last, load_rows, load_state, load_sums, locate, store_columns


@triton.jit
def measure(tile, HALF: tl.constexpr):
    """Give a power of two over which a tile's entries are at most 8, for sums of 256 products fit into float16 then.

    Not HALF: 1, for nothing is rounded.
    """
    if HALF:
        return ceil_power(tl.maximum(tl.max(tl.abs(tile)), 1e-30)) * 0.125
    else:
        return 1.0


@triton.jit
def narrow(tile, unit, HALF: tl.constexpr):
    """Give the operand of a product: HALF: float16 over the unit, else the tile as it is."""
    if HALF:
        return (tile * (1.0 / unit)).to(tl.float16)
    else:
        return tile


@triton.jit
def load_start(planes, unit, p, rows, columns, K, D, HALF: tl.constexpr):
    """Load a tile of a scaled state, as in `tiles.load_state`, and its unit; HALF: the high plane alone, 11 bits."""
    if HALF:
        place = rows[:, None] * D + columns[None, :]
        inside = (rows < K)[:, None] & (columns < D)[None, :]
        return tl.load(planes + p * 2 * K * D + place, mask=inside, other=0.0), tl.load(unit + p)
    else:
        return load_state(planes, unit, p, rows, columns, K, D), 1.0


@triton.jit
def load_gradient(state, root, p, rows, columns, K, D, SQUARE: tl.constexpr, HALF: tl.constexpr):
    """Load a tile of the gradient `[P, K, D]` of a plain state, give that of the scaled one and its unit.

    SQUARE: of the gram.
    """
    place = rows[:, None] * D + columns[None, :]
    tile = tl.load(state + p * K * D + place, mask=(rows < K)[:, None] & (columns < D)[None, :], other=0.0)
    tile *= tl.load(root + rows, mask=rows < K, other=0.0)[:, None]
    if SQUARE:
        tile *= tl.load(root + columns, mask=columns < K, other=0.0)[None, :]
    unit = measure(tile, HALF)
    return narrow(tile, unit, HALF), unit


@triton.jit
def weigh_pairs(
    solution, adjoint, upstream, key, value, high, low, root, scale, k, k_unit, v, v_unit, p, b, first, g, head, T, G,
    R, K, V, HALF: tl.constexpr, DOT: tl.constexpr, FLOOR: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Give one head's weights W and U as operands, what passes inside the chunk, x, and units of x, y, d and U.

    HALF: k and v are given, and x is given back, whole; W's unit is that of k times that of x.
    """
    t = tl.arange(0, C)
    heads = G * R
    read = tl.zeros([C, C], tl.float32)
    wanted = tl.zeros([C, C], tl.float32)
    found = tl.zeros([C, C], tl.float32)
    if HALF:
        i = tl.arange(0, BK)
        x = load_scaled(solution, root, b, first, head, heads, i, K, T, C)
        y = load_scaled(adjoint, root, b, first, head, heads, i, K, T, C)
        d = load_rows(upstream, b, first, head, heads, V, tl.arange(0, BV), T, C)
        x_unit = measure(x, HALF)
        x = narrow(x, x_unit, HALF)
        read = tl.dot(k, tl.trans(x), read)
        y_unit = measure(y, HALF)
        found = tl.dot(k, tl.trans(narrow(y, y_unit, HALF)), found)
        d_unit = measure(d, HALF)
        wanted = tl.dot(v, tl.trans(narrow(d, d_unit, HALF)), wanted)
    else:
        for begin in range(0, BK, BI):
            i = begin + tl.arange(0, BI)
            k = load_scaled(key, scale, b, first, g, G, i, K, T, C)
            x = load_scaled(solution, root, b, first, head, heads, i, K, T, C)
            read = tl.dot(k, tl.trans(x), read, input_precision=DOT)
            y = load_scaled(adjoint, root, b, first, head, heads, i, K, T, C)
            found = tl.dot(k, tl.trans(y), found, input_precision=DOT)
        for begin in range(0, BV, BI):
            i = begin + tl.arange(0, BI)
            v = load_rows(value, b, first, g, G, V, i, T, C)
            d = load_rows(upstream, b, first, head, heads, V, i, T, C)
            wanted = tl.dot(v, tl.trans(d), wanted, input_precision=DOT)
        x, x_unit, y_unit, d_unit = 0.0, 1.0, 1.0, 1.0
    c, rest = load_sums(high, low, p, C)
    between = (c[None, :] - c[:, None]) + (rest[None, :] - rest[:, None])
    decay = factor(tl.where(t[:, None] <= t[None, :], between, FLOOR - 1.0), FLOOR)
    unit = tl.maximum(tl.maximum(v_unit * d_unit, k_unit * y_unit), 1e-30)
    wanted = wanted * (v_unit * d_unit / unit) - found * (k_unit * y_unit / unit)
    read *= decay
    through = read * wanted * (k_unit * x_unit * unit)
    wanted *= decay
    return narrow(read, 1.0, HALF), narrow(wanted, 1.0, HALF), through, x, x_unit, y_unit, d_unit, unit


@triton.jit
def read_states(
    solution, key, rows, planes, plane_unit, gradient, root, scale, k, k_unit, x, x_unit, j, p, b, first, g, T, G, R, K,
    D, GRAM: tl.constexpr, HELD: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Give keys times columns j of a state's gradient `[C, columns]`, what those of the state pass on to each reader's
    row, of d or (GRAM) of y, `[C]`, and the product of both, a number.
    """  # fmt: skip
    later = tl.zeros([C, j.shape[0]], tl.float32)
    passed = tl.zeros([C], tl.float32)
    across = 0.0
    for begin in range(0, BK, BI):
        i = begin + tl.arange(0, BI)
        start, start_unit = load_start(planes, plane_unit, p, i, j, K, D, HALF)
        tile, unit = load_gradient(gradient, root, p, i, j, K, D, GRAM, HALF)
        if not HALF:
            k = load_scaled(key, scale, b, first, g, G, i, K, T, C)
        later += tl.dot(k, tile, input_precision=DOT) * (k_unit * unit)
        across += tl.sum(start.to(tl.float32) * tile.to(tl.float32)) * (start_unit * unit)
        for r in range(R):
            head = g * R + r
            if not HELD:
                x = load_scaled(solution, root, b, first, head, G * R, i, K, T, C)
                x_unit = measure(x, HALF)
                x = narrow(x, x_unit, HALF)
            if GRAM:
                d = load_scaled(rows, root, b, first, head, G * R, j, D, T, C)
            else:
                d = load_rows(rows, b, first, head, G * R, D, j, T, C)
            passed += tl.sum(tl.dot(x, start, input_precision=DOT) * d, 1) * (x_unit * start_unit)
    return later, passed, across


@triton.jit(do_not_specialize=["T", "N"])
def token_kernel(
    solution,  # x [B, T, H, K]
    adjoint,  # y [B, T, H, K]
    upstream,  # d [B, T, H, V]
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    log_forget,  # [B, T, G]
    input_gate,  # [B, T, G]
    high,
    low,
    gram,  # [P, 2, K, K] float16, as in `tiles.load_state`
    gram_unit,  # [P]
    cross,  # [P, 2, K, V] float16
    cross_unit,  # [P]
    root,  # [G, K] float32: sqrt(ridge)
    scale,  # [G, K] float32: 1 / sqrt(ridge)
    gram_end,  # Q [P, K, K]
    cross_end,  # P [P, K, V]
    d_key,  # written, as the five below
    d_value,
    d_log_forget,
    d_input_gate,
    d_ridge,  # [P, K] float32: minus the sum of x y over a problem's rows
    T,
    G,
    R,
    N,
    K,
    V,
    HELD: tl.constexpr,
    HALF: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """One program a problem, through tiles of BJ columns of the values and of the keys.

    HALF: inputs of 16 bits: products of float16 operands, keys and values held whole, BI = BK = BV. HELD: of one query
    head, and its weights and solutions are held too, else made again for every tile.
    """
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    root += g * K
    scale += g * K
    k, k_unit, v, v_unit = 0.0, 1.0, 0.0, 1.0
    if HALF:
        k = load_scaled(key, scale, b, first, g, G, tl.arange(0, BK), K, T, C)
        v = load_rows(value, b, first, g, G, V, tl.arange(0, BV), T, C)
        k_unit = measure(k, HALF)
        k = narrow(k, k_unit, HALF)
        v_unit = measure(v, HALF)
        v = narrow(v, v_unit, HALF)
    x, x_unit = 0.0, 1.0
    if HELD:
        W, U, through, x, x_unit, y_unit, d_unit, unit = weigh_pairs(
            solution, adjoint, upstream, key, value, high, low, root, scale, k, k_unit, v, v_unit, p, b, first, g, g,
            T, G, R, K, V, HALF, DOT, FLOOR, C, BI, BK, BV,
        )  # fmt: skip
    else:
        through = tl.zeros([C, C], tl.float32)
        for r in range(R):
            through += weigh_pairs(
                solution, adjoint, upstream, key, value, high, low, root, scale, k, k_unit, v, v_unit, p, b, first, g,
                g * R + r, T, G, R, K, V, HALF, DOT, FLOOR, C, BI, BK, BV,
            )[2]  # fmt: skip
    beta = load_gate(input_gate, b, g, first, left, T, G, t)
    # gate j lies between what sources s < j wrote and what readers t >= j read
    passing = tl.cumsum(through * beta[:, None], 1, reverse=True)
    inside = tl.sum(tl.where(t[:, None] < t[None, :], passing, 0.0), 0)
    c, rest = load_sums(high, low, p, C)
    end, end_rest = load_last(high, low, p, C)
    fade = factor((end - c) + (end_rest - rest), FLOOR)
    gate = tl.zeros([C], tl.float32)
    tail = tl.zeros([C], tl.float32)
    from_start = tl.zeros([C], tl.float32)
    across = 0.0

    for begin in range(0, V, BJ):
        j = begin + tl.arange(0, BJ)
        own = load_rows(value, b, first, g, G, V, j, T, C)
        gradient, passed, both = read_states(
            solution, key, upstream, cross, cross_unit, cross_end, root, scale, k, k_unit, x, x_unit, j, p, b, first, g,
            T, G, R, K, V, False, HELD, HALF, DOT, C, BI, BK,
        )  # fmt: skip
        from_start += passed
        across += both
        # of the two states' parts the cross state's is counted with the value
        tail += tl.sum(gradient * own, 1)
        gradient *= fade[:, None]
        for r in range(R):
            head = g * R + r
            if not HELD:
                W, U, through, x, x_unit, y_unit, d_unit, unit = weigh_pairs(
                    solution, adjoint, upstream, key, value, high, low, root, scale, k, k_unit, v, v_unit, p, b, first,
                    g, head, T, G, R, K, V, HALF, DOT, FLOOR, C, BI, BK, BV,
                )  # fmt: skip
            d = load_rows(upstream, b, first, head, G * R, V, j, T, C)
            gradient += tl.dot(W, narrow(d, d_unit, HALF), input_precision=DOT) * (k_unit * x_unit * d_unit)
        gate += tl.sum(gradient * own, 1)
        store_columns(d_value + ((b * T + first) * G + g) * V, gradient * beta[:, None], G * V, left, j, V, C)

    for begin in range(0, K, BJ):
        j = begin + tl.arange(0, BJ)
        own = load_scaled(key, scale, b, first, g, G, j, K, T, C)
        gradient, passed, both = read_states(
            solution, key, adjoint, gram, gram_unit, gram_end, root, scale, k, k_unit, x, x_unit, j, p, b, first, g,
            T, G, R, K, K, True, HELD, HALF, DOT, C, BI, BK,
        )  # fmt: skip
        from_start -= passed
        across += both
        tail += tl.sum(gradient * own, 1)
        gradient *= 2.0
        for start in range(0, BV, BI):
            i = start + tl.arange(0, BI)
            if not HALF:
                v = load_rows(value, b, first, g, G, V, i, T, C)
            tile, unit_of_tile = load_gradient(cross_end, root, p, j, i, K, V, False, HALF)
            gradient += tl.dot(v, tl.trans(tile), input_precision=DOT) * (v_unit * unit_of_tile)
        gradient *= fade[:, None]
        row = tl.load(scale + j, mask=j < K, other=0.0)
        lost = tl.zeros([BJ], tl.float32)
        for r in range(R):
            head = g * R + r
            if not HELD:
                W, U, through, x, x_unit, y_unit, d_unit, unit = weigh_pairs(
                    solution, adjoint, upstream, key, value, high, low, root, scale, k, k_unit, v, v_unit, p, b, first,
                    g, head, T, G, R, K, V, HALF, DOT, FLOOR, C, BI, BK, BV,
                )  # fmt: skip
            z = load_scaled(solution, root, b, first, head, G * R, j, K, T, C)
            y = load_scaled(adjoint, root, b, first, head, G * R, j, K, T, C)
            gradient += tl.dot(U, narrow(z, x_unit, HALF), input_precision=DOT) * (unit * x_unit)
            gradient -= tl.dot(W, narrow(y, y_unit, HALF), input_precision=DOT) * (k_unit * x_unit * y_unit)
            lost -= tl.sum(z * y, 0)
        gate += tl.sum(gradient * own, 1)
        tl.store(d_ridge + p * K + j, lost * row * row, mask=j < K)
        gradient *= beta[:, None] * row[None, :]
        store_columns(d_key + ((b * T + first) * G + g) * K, gradient, G * K, left, j, K, C)

    tail *= fade * beta
    from_start *= factor(c + rest, FLOOR)
    before = t[None, :] < t[:, None]
    inside += tl.sum(tl.where(before, tail[None, :], 0.0), 1) + factor(end + end_rest, FLOOR) * across
    inside += tl.sum(tl.where(before, 0.0, tl.where(t[None, :] >= t[:, None], from_start[None, :], 0.0)), 1)
    place = (b * T + first + t) * G + g
    log = tl.load(log_forget + place, mask=t < left, other=0.0)
    # a restart's gradient is exactly 0
    tl.store(d_log_forget + place, tl.where(log < FLOOR, 0.0, inside), mask=t < left)
    tl.store(d_input_gate + place, 0.5 * gate, mask=t < left)

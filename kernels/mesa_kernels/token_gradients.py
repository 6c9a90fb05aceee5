"""Gradients of keys, values, gates and ridge, which enter through the states (docs/mathematics.md, "Backward").

One program a problem has solutions x, adjoints y, upstream d, keys k and values v, the states G and H at the chunk's
start and the gradients P and Q of both at its end. Of a pair of source s and reader t, `[C, C]`, it makes the weights

    W = Z (k_s'x_t),  U = Z (v_s'd_t - k_s'y_t),

and from them, tile by tile of the columns, v's gradient W d + w k P and k's U x - W y + w (v P' + 2 k Q). A gate's is
the sum of what passes it: inside the chunk, from its start, to its end, or from the one to the other.

Inputs of 16 bits are multiplied in float16 over powers of two, which is exact but for x, y, weights and states. Those
are rounded to 11 bits where they weigh a sum. But x and y are split in two halves for W and U, and x and the states
where a gate passes from the start: a solution is large where the keys and the state are small, so that k'x and H x are
small differences of large numbers. What passes from a chunk's start to its end has the 11 bits of P and Q.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_scaled
from .tiles import (
    ceil_power,
    factor,
    load_gate,
    load_last,
    load_rows,
    load_state,
    load_sums,
    locate,
    store_columns,
)


@triton.jit
def measure(rows, b, first, head, heads, width, T, HALF: tl.constexpr, C: tl.constexpr, BI: tl.constexpr):
    """Return the unit of all rows of one chunk and head of `[B, T, heads, width]`: a power of two, for entries up to 8.

    float16 has exponents enough for all rows of a chunk.
    """
    unit = 1.0
    if HALF:
        largest = tl.zeros([C], tl.float32)
        for begin in range(0, width, BI):
            tile = load_rows(rows, b, first, head, heads, width, begin + tl.arange(0, BI), T, C)
            largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
        unit = ceil_power(tl.maximum(tl.max(largest, 0), 1e-30)) * 0.125
    return unit


@triton.jit
def unit_of(tile, HALF: tl.constexpr):
    """Return the power of two over which no entry of a tile is above 8; 1 unless HALF."""
    unit = 1.0
    if HALF:
        unit = ceil_power(tl.maximum(tl.max(tl.max(tl.abs(tile), 1), 0), 1e-30)) * 0.125
    return unit


@triton.jit
def narrow(tile, unit, HALF: tl.constexpr):
    """Return the operand of a product. HALF: float16 over its unit; else as it is."""
    if HALF:
        tile = (tile * (1.0 / unit)).to(tl.float16)
    return tile


@triton.jit
def load_start(planes, unit, p, rows, columns, K, D, HALF: tl.constexpr):
    """Load a tile of a scaled state, as in `tiles.load_state`, and its unit. HALF: of one plane alone, 11 bits."""
    if HALF:
        place = rows[:, None] * D + columns[None, :]
        inside = (rows < K)[:, None] & (columns < D)[None, :]
        tile = tl.load(planes + p * 2 * K * D + place, mask=inside, other=0.0)
        size = tl.load(unit + p)
    else:
        tile = load_state(planes, unit, p, rows, columns, K, D)
        size = 1.0
    return tile, size


@triton.jit
def load_gradient(
    gradient, unit, p, row, column, K, D, HALF: tl.constexpr, SIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Load a tile `[BI, BJ]` of the gradient `[P, K, D]` of a plain state, which is one block, and its unit.

    HALF: float16 over powers of two `[P, K / SIDE, D / SIDE]`, of which there is one for every block.
    """
    i = row + tl.arange(0, BI)
    j = column + tl.arange(0, BJ)
    inside = (i < K)[:, None] & (j < D)[None, :]
    tile = tl.load(gradient + p * K * D + i[:, None] * D + j[None, :], mask=inside, other=0.0)
    size = 1.0
    if HALF:
        tl.static_assert(SIDE % BI == 0 and SIDE % BJ == 0)
        size = tl.load(unit + (p * tl.cdiv(K, SIDE) + row // SIDE) * tl.cdiv(D, SIDE) + column // SIDE)
    return tile, size


@triton.jit
def add_scores(scores, sources, s_unit, readers, t_unit, SPLIT: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr):
    """Add the products of all sources with all readers, both `[C, columns]`. SPLIT: readers need more than 11 bits."""
    s = narrow(sources, s_unit, HALF)
    t = narrow(readers, t_unit, HALF)
    scores = tl.dot(s, tl.trans(t), scores, input_precision=DOT)
    if HALF and SPLIT:
        low = (readers * (1.0 / t_unit) - t.to(tl.float32)).to(tl.float16)
        scores = tl.dot(s, tl.trans(low), scores)
    return scores


@triton.jit
def weigh_pairs(
    solution, adjoint, upstream, key, value, units, k_unit, v_unit, high, low, p, b, first, g, head, T, G, R, K, V,
    HALF: tl.constexpr, DOT: tl.constexpr, FLOOR: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Return one head's weights W and U and what passes inside the chunk, all `[sources, readers]` in float32.

    Stores the units of x, y and d.
    """
    heads = G * R
    x_unit = measure(solution, b, first, head, heads, K, T, HALF, C, BI)
    y_unit = measure(adjoint, b, first, head, heads, K, T, HALF, C, BI)
    d_unit = measure(upstream, b, first, head, heads, V, T, HALF, C, BI)
    tl.store(units + 2, x_unit)
    tl.store(units + 3, y_unit)
    tl.store(units + 4, d_unit)
    read = tl.zeros([C, C], tl.float32)
    sought = tl.zeros([C, C], tl.float32)
    wanted = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        k = load_rows(key, b, first, g, G, K, i, T, C)
        x = load_rows(solution, b, first, head, heads, K, i, T, C)
        y = load_rows(adjoint, b, first, head, heads, K, i, T, C)
        read = add_scores(read, k, k_unit, x, x_unit, True, HALF, DOT)
        sought = add_scores(sought, k, k_unit, y, y_unit, True, HALF, DOT)
    for begin in range(0, V, BI):
        j = begin + tl.arange(0, BI)
        v = load_rows(value, b, first, g, G, V, j, T, C)
        d = load_rows(upstream, b, first, head, heads, V, j, T, C)
        wanted = add_scores(wanted, v, v_unit, d, d_unit, False, HALF, DOT)
    read *= k_unit * x_unit
    wanted = wanted * (v_unit * d_unit) - sought * (k_unit * y_unit)
    t = tl.arange(0, C)
    c, d = load_sums(high, low, p, C)
    between = (c[None, :] - c[:, None]) + (d[None, :] - d[:, None])
    decay = factor(tl.where(t[:, None] <= t[None, :], between, FLOOR - 1.0), FLOOR)
    read *= decay
    return read, wanted * decay, read * wanted


@triton.jit
def store_weights(pairs, unit_place, weights, HALF: tl.constexpr, C: tl.constexpr):
    """Store weights `[C, C]` as the operand of products that they are in."""
    t = tl.arange(0, C)
    unit = unit_of(weights, HALF)
    tl.store(pairs + t[:, None] * C + t[None, :], narrow(weights, unit, HALF))
    tl.store(unit_place, unit)


@triton.jit
def load_weights(pairs, unit_place, C: tl.constexpr):
    """Load what `store_weights` stored."""
    t = tl.arange(0, C)
    return tl.load(pairs + t[:, None] * C + t[None, :]), tl.load(unit_place)


@triton.jit
def read_end(
    key, k_unit, planes, plane_unit, gradient, gradient_unit, root, column, p, b, first, g, T, G, K, D,
    GRAM: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr, C: tl.constexpr, SIDE: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr,
):  # fmt: skip
    """Return keys times BJ columns of a state's gradient, `[C, BJ]`, and the product of gradient and state."""
    j = column + tl.arange(0, BJ)
    later = tl.zeros([C, BJ], tl.float32)
    across = tl.zeros([BI], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        start, start_unit = load_start(planes, plane_unit, p, i, j, K, D, HALF)
        tile, unit = load_gradient(gradient, gradient_unit, p, begin, column, K, D, HALF, SIDE, BI, BJ)
        k = narrow(load_rows(key, b, first, g, G, K, i, T, C), k_unit, HALF)
        both = start.to(tl.float32) * tile.to(tl.float32) * tl.load(root + i, mask=i < K, other=0.0)[:, None]
        if GRAM:
            both *= tl.load(root + j, mask=j < K, other=0.0)[None, :]
        across += tl.sum(both, 1) * (start_unit * unit)
        later += tl.dot(k, tile, input_precision=DOT) * (k_unit * unit)
    return later, tl.sum(across, 0)


@triton.jit
def read_start(
    solution, x_unit, planes, plane_unit, root, j, p, b, first, head, heads, T, K, D, HALF: tl.constexpr,
    DOT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Return scaled solutions times columns j of a state, `[C, BJ]`; HALF: of both in two halves."""
    read = tl.zeros([C, BJ], tl.float32)
    unit = 1.0
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        start, unit = load_start(planes, plane_unit, p, i, j, K, D, HALF)
        rows = load_scaled(solution, root, b, first, head, heads, i, K, T, C)
        x = narrow(rows, x_unit, HALF)
        read = tl.dot(x, start, read, input_precision=DOT)
        if HALF:
            low = (rows * (1.0 / x_unit) - x.to(tl.float32)).to(tl.float16)
            read = tl.dot(low, start, read)
            rest, _ = load_start(planes + K * D, plane_unit, p, i, j, K, D, HALF)
            read = tl.dot(x, rest, read)
    return read * (x_unit * unit) if HALF else read


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
    gram_end,  # Q [P, K, K], as in `load_gradient`
    gram_end_unit,
    cross_end,  # P [P, K, V]
    cross_end_unit,
    pairs,  # [P, R, 2, C, C], written: W and U, float16 if HALF, else float32
    units,  # [P, R, 5] float32, written: of W, U, x, y and d
    within,  # [P, C] float32, written: what passes gates inside the chunk
    d_key,  # written, as the four below
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
    HALF: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program a problem, through tiles of BJ columns of the values and of the keys; HALF: for inputs of 16 bits.

    Weights go through memory that stays in the cache: a product takes them from there without registers. What is used
    early and late is loaded twice, with a barrier between, for otherwise it fills registers until some are spilled.
    """
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    root += g * K
    pairs += p * R * 2 * C * C
    units += p * R * 5
    k_unit = measure(key, b, first, g, G, K, T, HALF, C, BI)
    v_unit = measure(value, b, first, g, G, V, T, HALF, C, BI)
    widest = 1.0  # by what scaling a solution may lengthen it
    if HALF:
        for begin in range(0, K, BI):
            i = begin + tl.arange(0, BI)
            widest = tl.maximum(widest, ceil_power(tl.max(tl.load(root + i, mask=i < K, other=0.0), 0)))
    through = tl.zeros([C, C], tl.float32)
    for r in range(R):
        W, U, inner = weigh_pairs(
            solution, adjoint, upstream, key, value, units + r * 5, k_unit, v_unit, high, low, p, b, first, g,
            g * R + r, T, G, R, K, V, HALF, DOT, FLOOR, C, BI,
        )  # fmt: skip
        store_weights(pairs + r * 2 * C * C, units + r * 5, W, HALF, C)
        store_weights(pairs + (r * 2 + 1) * C * C, units + r * 5 + 1, U, HALF, C)
        through += inner
    # gate j lies between what sources s < j wrote and what readers t >= j read
    passing = tl.cumsum(through * load_gate(input_gate, b, g, first, left, T, G, t)[:, None], 1, reverse=True)
    tl.store(within + p * C + t, tl.sum(tl.where(t[:, None] < t[None, :], passing, 0.0), 0))
    tl.debug_barrier()
    beta = load_gate(input_gate, b, g, first, left, T, G, t)
    c, rest = load_sums(high, low, p, C)
    end, end_rest = load_last(high, low, p, C)
    fade = factor((end - c) + (end_rest - rest), FLOOR)
    gate = tl.zeros([C], tl.float32)
    tail = tl.zeros([C], tl.float32)
    from_start = tl.zeros([C], tl.float32)
    across = 0.0

    for begin in range(0, V, BJ):
        j = begin + tl.arange(0, BJ)
        for r in range(R):
            d = load_rows(upstream, b, first, g * R + r, G * R, V, j, T, C)
            read = read_start(
                solution, tl.load(units + r * 5 + 2) * widest, cross, cross_unit, root, j, p, b, first, g * R + r,
                G * R, T, K, V, HALF, DOT, C, BI, BJ,
            )  # fmt: skip
            from_start += tl.sum(read * d, 1)
        tl.debug_barrier()
        gradient, both = read_end(
            key, k_unit, cross, cross_unit, cross_end, cross_end_unit, root, begin, p, b, first, g, T, G, K, V, False,
            HALF, DOT, C, SIDE, BI, BJ,
        )  # fmt: skip
        across += both
        own = load_rows(value, b, first, g, G, V, j, T, C)
        # of the two states' parts the cross state's is counted with the value
        tail += tl.sum(gradient * own, 1)
        gradient *= fade[:, None]
        for r in range(R):
            unit = tl.load(units + r * 5 + 4)
            d = narrow(load_rows(upstream, b, first, g * R + r, G * R, V, j, T, C), unit, HALF)
            W, W_unit = load_weights(pairs + r * 2 * C * C, units + r * 5, C)
            gradient += tl.dot(W, d, input_precision=DOT) * (W_unit * unit)
        tl.debug_barrier()
        gate += tl.sum(gradient * load_rows(value, b, first, g, G, V, j, T, C), 1)
        store_columns(d_value + ((b * T + first) * G + g) * V, gradient * beta[:, None], G * V, left, j, V, C)

    for begin in range(0, K, BJ):
        j = begin + tl.arange(0, BJ)
        for r in range(R):
            y = load_scaled(adjoint, root, b, first, g * R + r, G * R, j, K, T, C)
            read = read_start(
                solution, tl.load(units + r * 5 + 2) * widest, gram, gram_unit, root, j, p, b, first, g * R + r, G * R,
                T, K, K, HALF, DOT, C, BI, BJ,
            )  # fmt: skip
            from_start -= tl.sum(read * y, 1)
        tl.debug_barrier()
        gradient, both = read_end(
            key, k_unit, gram, gram_unit, gram_end, gram_end_unit, root, begin, p, b, first, g, T, G, K, K, True, HALF,
            DOT, C, SIDE, BI, BJ,
        )  # fmt: skip
        across += both
        own = load_rows(key, b, first, g, G, K, j, T, C)
        tail += tl.sum(gradient * own, 1)
        gradient *= 2.0
        for start in range(0, V, BI):
            i = start + tl.arange(0, BI)
            v = narrow(load_rows(value, b, first, g, G, V, i, T, C), v_unit, HALF)
            tile, tile_unit = load_gradient(cross_end, cross_end_unit, p, begin, start, K, V, HALF, SIDE, BJ, BI)
            gradient += tl.dot(v, tl.trans(tile), input_precision=DOT) * (v_unit * tile_unit)
        gradient *= fade[:, None]
        lost = tl.zeros([BJ], tl.float32)
        for r in range(R):
            x = load_rows(solution, b, first, g * R + r, G * R, K, j, T, C)
            y = load_rows(adjoint, b, first, g * R + r, G * R, K, j, T, C)
            lost -= tl.sum(x * y, 0)
            x_unit, y_unit = tl.load(units + r * 5 + 2), tl.load(units + r * 5 + 3)
            x, y = narrow(x, x_unit, HALF), narrow(y, y_unit, HALF)
            U, U_unit = load_weights(pairs + (r * 2 + 1) * C * C, units + r * 5 + 1, C)
            gradient += tl.dot(U, x, input_precision=DOT) * (U_unit * x_unit)
            W, W_unit = load_weights(pairs + r * 2 * C * C, units + r * 5, C)
            gradient -= tl.dot(W, y, input_precision=DOT) * (W_unit * y_unit)
        tl.debug_barrier()
        gate += tl.sum(gradient * load_rows(key, b, first, g, G, K, j, T, C), 1)
        tl.store(d_ridge + p * K + j, lost, mask=j < K)
        store_columns(d_key + ((b * T + first) * G + g) * K, gradient * beta[:, None], G * K, left, j, K, C)

    tail *= fade * beta
    c, rest = load_sums(high, low, p, C)
    from_start *= factor(c + rest, FLOOR)
    inside = tl.load(within + p * C + t)
    inside += tl.sum(tl.where(t[None, :] < t[:, None], tail[None, :], from_start[None, :]), 1)
    end, end_rest = load_last(high, low, p, C)
    inside += factor(end + end_rest, FLOOR) * across
    place = (b * T + first + t) * G + g
    log = tl.load(log_forget + place, mask=t < left, other=0.0)
    # a restart's gradient is exactly 0
    tl.store(d_log_forget + place, tl.where(log < FLOOR, 0.0, inside), mask=t < left)
    tl.store(d_input_gate + place, 0.5 * gate, mask=t < left)

"""Solve the rows of a chunk by conjugate gradients that stay on chip, and read the states in the same program.

All rows of a problem together are the system A P = P + diag(a) P H + (P k' * Z) k, in which H is the scaled gram at the
chunk's start, k the scaled keys and Z the decays: three products whose right factors never change, so they stay in
shared memory, and everything else in registers.

A *pass* solves A d = r with float16 operands and float32 sums until r has shrunk to `GAIN` of its size (or to half the
tolerance), adds d to x, and computes the true residual with H, k, x and the scores split in two float16 halves. A >= I,
so that residual bounds the error of x (docs/mathematics.md). What no pass certifies is marked, for
`conjugate_gradients`.

What keeps the loop on chip, found by compiling without it: four warps, so that each owns whole rows of every product;
d, r and p in float16 and the mask too; rows summed only of tiles that come out of a product, for a tile from memory
brings its own layout along; the direction made at the head of the loop, and two loops, of which the inner one looks at
nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import ceil_power, factor, load_columns, load_decay, load_sums, locate, split, store_columns

STEPS = 128
"""Products on chip before a problem is left to float32."""
STRIDE = 2
"""Products between two looks at all rows."""
PASSES = 6
GAIN = 0.005
"""What a pass must gain: float16 operands allow about three digits, two are safe."""
NARROWEST = 64
"""Columns of the narrowest tile. Triton 3.6 multiplies 16-bit right operands whose rows are shorter wrongly on sm_90."""
FREEZE = 1 / 256
"""Square of the share of a pass's target at which a row stops: until then it goes on for as long as others need it."""


@triton.jit
def divisor(x):
    """Give a power of two at least x, or 1 where x is 0."""
    return tl.where(x > 0.0, ceil_power(x), 1.0)


@triton.jit
def weigh(high, low, input_gate, lift, p, T, G, N, POWER: tl.constexpr, FLOOR: tl.constexpr, C: tl.constexpr):
    """Give decays times beta, for keys over their lift: times the lift, to the POWER of how many of them meet."""
    s = tl.arange(0, C)
    u = tl.load(lift + p * C + s)
    if POWER == 2:
        u = u * u
    return load_decay(high, low, input_gate, p, s, T, G, N, FLOOR, C) * u[None, :]


@triton.jit
def load_key(key, stride, left, root, lift, p, j, K, C: tl.constexpr):
    """Load the scaled keys over their lift, in float16 halves `[C, K]`."""
    t = tl.arange(0, C)
    u = 1.0 / tl.load(lift + p * C + t)
    return split(
        load_columns(key, stride, left, j, K, C) * tl.load(root + j, mask=j < K, other=0.0)[None, :] * u[:, None]
    )


@triton.jit
def load_values(value, stride, left, v, V, C: tl.constexpr):
    """Load columns of the values, which 16 bits hold, over a power of two: `[C, columns]`."""
    tile = load_columns(value, stride, left, v, V, C)
    unit = divisor(tl.max(tl.max(tl.abs(tile), 1), 0)) * (1.0 / 4096.0)
    return (tile * (1.0 / unit)).to(tl.float16), unit


@triton.jit
def make_adjoint(
    upstream, stride_d, value, stride_v, cross, cross_unit, k, k_low, before, weights, left, i, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Compute the adjoint's right-hand side, G_t d_t times the ridge's root: `[C, K]` float32."""
    largest = tl.zeros([C], tl.float32)
    for begin in range(0, V, BV):
        v = begin + tl.arange(0, BV)
        largest = tl.maximum(largest, tl.max(tl.abs(load_columns(upstream, stride_d, left, v, V, C)), 1))
    unit = divisor(largest) * (1.0 / 16.0)
    result = tl.zeros([C, BK], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for begin in range(0, V, BV):
        v = begin + tl.arange(0, BV)
        d = (load_columns(upstream, stride_d, left, v, V, C) * (1.0 / unit)[:, None]).to(tl.float16)
        square = i[:, None] * V + v[None, :]
        inside = (i < K)[:, None] & (v < V)[None, :]
        result = tl.dot(d, tl.trans(tl.load(cross + square, mask=inside, other=0.0)), result)
        result = tl.dot(d, tl.trans(tl.load(cross + K * V + square, mask=inside, other=0.0)), result)
        values, wide = load_values(value, stride_v, left, v, V, C)
        scores += tl.dot(d, tl.trans(values)) * wide
    scores *= weights
    result *= (before * cross_unit)[:, None]
    size = divisor(tl.max(tl.abs(scores), 1)) * (1.0 / 4096.0)
    upper, lower = split(scores * (1.0 / size)[:, None])
    part = tl.dot(upper, k)
    part = tl.dot(lower, k, part)
    part = tl.dot(upper, k_low, part)
    return (result + part * size[:, None]) * unit[:, None]


@triton.jit
def update(
    x, rest, gram, key, root, high, low, input_gate, lift, measures, d16, k, k_low, grow, gram_unit, stride_k, row_stride, left,
    p, T, G, N, first_pass, K: tl.constexpr, FLOOR: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Add d to x, take A d from the residual, both in memory, and store the squares of their norms.

    By tiles of BJ columns, so that registers hold it. d's own columns come out of a product with columns of the identity.
    """
    t = tl.arange(0, C)
    i = tl.arange(0, BK)
    w = tl.dot(d16, tl.trans(k))
    w = tl.dot(d16, tl.trans(k_low), w) * weigh(high, low, input_gate, lift, p, T, G, N, 2, FLOOR, C)
    w_high, w_low = split(w)
    c, d = load_sums(high, low, p, C)
    before = factor(c + d, FLOOR) * gram_unit
    rr = tl.zeros([C], tl.float32)
    xx = tl.zeros([C], tl.float32)
    unit = tl.load(measures + t)
    for begin in range(0, K, BJ):
        j = begin + tl.arange(0, BJ)
        cells = i[:, None] * K + j[None, :]
        inside = (i < K)[:, None] & (j < K)[None, :]
        a = tl.dot(d16, tl.load(gram + K * K + cells, mask=inside, other=0.0))
        a = tl.dot(d16, tl.load(gram + cells, mask=inside, other=0.0), a) * before[:, None]
        own, own_low = load_key(key, stride_k, left, root, lift, p, j, K, C)
        a = tl.dot(w_high, own, a)
        a = tl.dot(w_low, own, a)
        a = tl.dot(w_high, own_low, a)
        step = tl.dot(d16, (i[:, None] == j[None, :]).to(tl.float16))
        r = load_columns(rest, row_stride, left, j, K, C) - (a + step) * grow[:, None]
        store_columns(rest, r, row_stride, left, j, K, C)
        rr += tl.sum(r * r, 1)
        full = step * (grow * unit)[:, None] * tl.load(root + j, mask=j < K, other=0.0)[None, :]
        full += load_columns(x, row_stride, tl.where(first_pass, 0, left), j, K, C)
        store_columns(x, full, row_stride, left, j, K, C)
        full *= (1.0 / unit)[:, None]
        xx += tl.sum(full * full, 1)
    tl.store(measures + C + t, rr)
    tl.store(measures + 2 * C + t, xx)


@triton.jit(do_not_specialize=["max_steps", "stride", "T", "N"])
def solve_kernel(
    query,  # [B, T, H, K], read if not ADJOINT
    rest,  # [B, T, H, K] float32, memory of its own: the residual
    x,  # [B, T, H, K] float32, written
    steps,  # [B, N, H] int32, written: products with A, a residual counting two
    measures,  # [P, R, 3, C] float32, memory of its own: of each row, its unit, the squares of what is left and of x
    marks,  # [P, R] int32, written: 1 where some row is not certified, else 0
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    input_gate,
    high,
    low,
    lift,  # [P, C]
    gram,  # [P, 2, K, K] float16: the scaled gram over its scale
    gram_unit,  # [P]
    cross,  # [P, 2, K, V] float16
    cross_unit,  # [P]
    scale,  # [G, K] float32: 1 / sqrt(ridge)
    ends,  # [B, T, H, V]: the output, written; ADJOINT: its gradient, read
    limit,
    max_steps,
    stride,
    T,
    N,
    G: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    ADJOINT: tl.constexpr,
    PASSES: tl.constexpr,
    GAIN: tl.constexpr,
    FREEZE: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program a problem and query head, those of one key head beside one another; four warps."""
    place = tl.program_id(0).to(tl.int64)
    p = place // R
    b, g, first, left = locate(p, T, G, N, C)
    head = g * R + (place % R).to(tl.int32)
    t = tl.arange(0, C)
    i = tl.arange(0, BK)
    j = tl.arange(0, BK)
    heads = G * R
    row_stride = heads * K
    query += ((b * T + first) * heads + head) * K
    rest += ((b * T + first) * heads + head) * K
    x += ((b * T + first) * heads + head) * K
    ends += ((b * T + first) * heads + head) * V
    key += ((b * T + first) * G + g) * K
    value += ((b * T + first) * G + g) * V
    root = scale + g * K
    gram += p * 2 * K * K
    cross += p * 2 * K * V
    square = i[:, None] * K + j[None, :]
    whole = (i < K)[:, None] & (j < K)[None, :]
    k, k_low = load_key(key, G * K, left, root, lift, p, j, K, C)
    if ADJOINT:
        c, d = load_sums(high, low, p, C)
        weights = weigh(high, low, input_gate, lift, p, T, G, N, 1, FLOOR, C)
        q = make_adjoint(
            ends, heads * V, value, G * V, cross, tl.load(cross_unit + p), k, k_low, factor(c + d, FLOOR), weights,
            left, i, K, V, C, BK, BJ,
        )  # fmt: skip
    mask = weigh(high, low, input_gate, lift, p, T, G, N, 2, FLOOR, C).to(tl.float16)
    c, d = load_sums(high, low, p, C)
    start = (factor(c + d, FLOOR) * tl.load(gram_unit + p)).to(tl.float16)
    H = tl.load(gram + square, mask=whole, other=0.0)
    row = tl.load(root + j, mask=j < K, other=0.0)
    allowed = limit / tl.max(row, 0)
    narrowest = 1.0 / tl.min(tl.load(root + j, mask=j < K, other=float("inf")), 0)

    # Rows are solved in units of their largest element, so that no square of them leaves float32.
    if not ADJOINT:
        q = load_columns(query, row_stride, left, j, K, C) * row[None, :]
    unit = divisor(tl.max(tl.abs(q), 1))
    r32 = q * (1.0 / unit)[:, None]
    store_columns(rest, r32, row_stride, left, j, K, C)
    # What is known of rows goes through memory, so that no layout of a load spreads from it.
    measures += place * 3 * C
    tl.store(measures + t, unit)
    tl.store(measures + C + t, tl.sum(r32 * r32, 1))
    tl.debug_barrier()
    rr = tl.load(measures + C + t)
    xx = tl.zeros_like(rr)
    live = rr > 0.0
    taken = 0
    passes = 0
    while (passes == 0) | ((passes < PASSES) & (taken < max_steps) & (tl.max(live.to(tl.int32), 0) > 0)):
        # A pass works on r / |r| * 16: far from both ends of float16.
        shrink = tl.where(live, 16.0 / tl.sqrt(tl.where(live, rr, 1.0)), 0.0)
        target = tl.maximum(16.0 * GAIN, 0.5 * allowed * tl.sqrt(xx) * shrink)
        target *= target
        r = (load_columns(rest, row_stride, left, j, K, C) * shrink[:, None]).to(tl.float16)
        p16 = r
        d16 = tl.zeros_like(r)  # 64 times the solution, as steps may be as short as 1 / the largest eigenvalue
        rs = tl.where(live, 256.0, 0.0)
        beta = tl.zeros_like(rs)
        busy = 1
        while busy > 0:
            look = taken + stride
            while taken < look:
                p16 = tl.fma(beta.to(tl.float16)[:, None], p16, r)
                w = tl.dot(p16, tl.trans(k)).to(tl.float16) * mask
                a = tl.dot(w, k)
                a = tl.dot(p16 * start[:, None], H, a)
                p32 = p16.to(tl.float32)
                a += p32
                curvature = tl.sum(p32 * a, 1)
                go = (rs * (1.0 / FREEZE) > target) & (curvature > 0.0)  # other rows are frozen
                step = tl.where(go, 64.0 * rs / tl.where(go, curvature, 1.0), 0.0).to(tl.float16)
                d16 = tl.fma(step[:, None], p16, d16)
                a = r.to(tl.float32) - (step.to(tl.float32) * (1.0 / 64.0))[:, None] * a  # the step as rounded
                new = tl.sum(a * a, 1)
                beta = tl.where(go, new / tl.where(go, rs, 1.0), 0.0)
                rs = tl.where(go, new, 0.0)
                r = a.to(tl.float16)
                taken += 1
            busy = tl.max(((rs > target) & (taken < max_steps)).to(tl.int32), 0)

        grow = tl.where(live, 1.0 / (64.0 * tl.where(live, shrink, 1.0)), 0.0)
        tl.debug_barrier()
        update(
            x, rest, gram, key, root, high, low, input_gate, lift, measures, d16, k, k_low, grow, tl.load(gram_unit + p), G * K,
            row_stride, left, p, T, G, N, passes == 0, K, FLOOR, C, BK, BJ,
        )  # fmt: skip
        tl.debug_barrier()
        last = rr
        rr = tl.where(live, tl.load(measures + C + t), rr)
        xx = tl.load(measures + 2 * C + t)
        live = (rr > allowed * allowed * xx) & (rr < 0.25 * last)
        taken += 2
        passes += 1

    failed = tl.max((rr <= allowed * allowed * xx).to(tl.int32) ^ 1, 0)  # also where there is no number
    tl.store(marks + place, failed)
    tl.store(steps + (b * N + p % N) * heads + head, tl.minimum(taken, max_steps))
    if not ADJOINT:
        row = tl.load(root + j, mask=j < K, other=1.0)
        full = load_columns(x, row_stride, left, j, K, C) * (1.0 / tl.load(measures + t))[:, None] / row[None, :]
        size = divisor(tl.sqrt(xx) * narrowest) * (1.0 / 16.0)
        y, z = split(full * (1.0 / size)[:, None])
        w = tl.dot(y, tl.trans(k))
        w = tl.dot(z, tl.trans(k), w)
        w = tl.dot(y, tl.trans(k_low), w) * weigh(high, low, input_gate, lift, p, T, G, N, 1, FLOOR, C)
        narrow = divisor(tl.max(tl.abs(w), 1)) * (1.0 / 4096.0)
        w_high, w_low = split(w * (1.0 / narrow)[:, None])
        c, d = load_sums(high, low, p, C)
        before = factor(c + d, FLOOR) * tl.load(cross_unit + p)
        for begin in range(0, V, BJ):
            v = begin + tl.arange(0, BJ)
            cells = i[:, None] * V + v[None, :]
            inside = (i < K)[:, None] & (v < V)[None, :]
            upper = tl.load(cross + cells, mask=inside, other=0.0)
            o = tl.dot(y, upper)
            o = tl.dot(z, upper, o)
            o = tl.dot(y, tl.load(cross + K * V + cells, mask=inside, other=0.0), o) * before[:, None]
            values, wide = load_values(value, G * V, left, v, V, C)
            part = tl.dot(w_high, values)
            part = tl.dot(w_low, values, part)
            o += part * (narrow * wide)[:, None]
            store_columns(ends, o * (size * tl.load(measures + t))[:, None], heads * V, left, v, V, C)

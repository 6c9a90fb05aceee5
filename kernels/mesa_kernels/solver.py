"""Solve the rows of a chunk by on-chip conjugate gradients, and read the states in the same program.

All rows of a problem together are the system A P = P + diag(a) P H + (P k' * Z) k, in which H is the scaled gram at the
chunk's start, k the scaled keys and Z the decays: three products with right factors that never change, so they stay in
shared memory, and everything else in registers.

A *pass* solves A d = r with float16 operands and float32 sums until r has shrunk to `GAIN` of its size (or to half the
tolerance), keeps d, which is float16, and computes the true residual r - A d with H, k and the scores split in two
float16 halves. A >= I, so that residual bounds the error of x (docs/mathematics.md), the sum of what passes kept. What
no pass certifies is marked, for `conjugate_gradients`.

What keeps the loop on chip, found by compiling without it: four warps, so that each owns whole rows of every product;
d, r and p in float16 and the mask too; rows summed only of tiles that come out of a product, for a tile from memory
brings its own layout along; the direction made at the head of the loop, and two loops, of which the inner one looks at
nothing. What a pass needs beside d, and what follows the loops, is addressed and loaded there: registers that are held
through the loops spill, and on a card spills go past the cache, since shared memory takes its place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import ceil_power, load_columns, locate, split, store_columns

STEPS = 128
"""Maximum products on chip, after which a problem is left to the float32 solver."""
STRIDE = 2
"""Products between two tests of all rows."""
PASSES = 3
GAIN = 0.005
"""Target ratio of residuals per pass; float16 operands allow about three digits. Larger values need more passes."""
FREEZE = 1 / 256
"""Square of the share of a pass's target at which a row stops: until then it goes on for as long as others need it."""


@triton.jit
def divisor(x):
    """Return a power of two at least x, or 1 where x is 0."""
    return tl.where(x > 0.0, ceil_power(x), 1.0)


@triton.jit
def load_key(key, stride, left, root, lift, j, K, C: tl.constexpr):
    """Load the scaled keys over their lift, in float16 halves `[C, K]`."""
    t = tl.arange(0, C)
    u = 1.0 / tl.load(lift + t)
    return split(
        load_columns(key, stride, left, j, K, C) * tl.load(root + j, mask=j < K, other=0.0)[None, :] * u[:, None]
    )


@triton.jit
def load_weights(weights, lift, C: tl.constexpr):
    """Load the weights of values, `gates.gate_kernel`'s with the lift to the power of one: `[C, C]`."""
    t = tl.arange(0, C)
    return tl.load(weights + t[:, None] * C + t[None, :]) * (1.0 / tl.load(lift + t))[None, :]


@triton.jit
def load_values(value, stride, left, v, V, C: tl.constexpr):
    """Load columns of the values, which 16 bits hold, over a power of two: `[C, columns]`."""
    tile = load_columns(value, stride, left, v, V, C)
    unit = divisor(tl.max(tl.max(tl.abs(tile), 1), 0)) * (1.0 / 4096.0)
    return (tile * (1.0 / unit)).to(tl.float16), unit


@triton.jit
def make_adjoint(
    upstream, stride_d, value, stride_v, cross, cross_unit, k, k_low, before, weights, lift, left, i,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Compute the right-hand side of the adjoint system, the scaled G_t d_t: `[C, K]` float32."""
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
    scores *= load_weights(weights, lift, C)
    result *= (before * cross_unit)[:, None]
    size = divisor(tl.max(tl.abs(scores), 1)) * (1.0 / 4096.0)
    upper, lower = split(scores * (1.0 / size)[:, None])
    part = tl.dot(upper, k)
    part = tl.dot(lower, k, part)
    part = tl.dot(upper, k_low, part)
    return (result + part * size[:, None]) * unit[:, None]


@triton.jit(do_not_specialize=["max_steps", "stride", "T", "N"])
def solve_kernel(
    query,  # [B, T, H, K], read if not ADJOINT
    x,  # [B, T, H, K] float32, written
    steps,  # [B, N, H] int32, written: products with A, a residual counting two
    rest,  # [P, R, C, K] float32, memory of its own: what is left of the right-hand side
    parts,  # [P, R, PASSES, C, K] float16, memory of its own: what each pass adds to x
    measures,  # [P, R, 2 + PASSES, C] float32, memory of its own: each row's unit, square, and the parts' factors
    marks,  # [P, R] int32, written: 1 where some row is not certified, else 0
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    lift,  # [P, C]
    before,  # [P, C]
    weights,  # [P, C, C]
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
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """One program per problem and query head, those of one key head adjacent; four warps."""
    place = tl.program_id(0).to(tl.int64)
    p = place // R
    b, g, first, left = locate(p, T, G, N, C)
    head = g * R + (place % R).to(tl.int32)
    t = tl.arange(0, C)
    i = tl.arange(0, BK)
    j = tl.arange(0, BK)
    heads = G * R
    root = scale + g * K
    square = i[:, None] * K + j[None, :]
    whole = (i < K)[:, None] & (j < K)[None, :]
    k, k_low = load_key(key + ((b * T + first) * G + g) * K, G * K, left, root, lift + p * C, j, K, C)
    row = tl.load(root + j, mask=j < K, other=0.0)
    if ADJOINT:
        q = make_adjoint(
            ends + ((b * T + first) * heads + head) * V, heads * V, value + ((b * T + first) * G + g) * V, G * V,
            cross + p * 2 * K * V, tl.load(cross_unit + p), k, k_low, tl.load(before + p * C + t), weights + p * C * C,
            lift + p * C, left, i, K, V, C, BK, BV,
        )  # fmt: skip
    else:
        query += ((b * T + first) * heads + head) * K
        q = load_columns(query, heads * K, left, j, K, C) * row[None, :]
    allowed = limit / tl.max(row, 0)

    # Rows are solved in units of their largest element, so that no square of them leaves float32.
    unit = divisor(tl.max(tl.abs(q), 1))
    r32 = q * (1.0 / unit)[:, None]
    cells = t[:, None] * K + j[None, :]
    tl.store(rest + place * C * K + cells, r32, mask=(j < K)[None, :])
    # Facts about rows go through memory, so that the layouts of loads do not propagate.
    known = measures + place * (2 + PASSES) * C + t
    tl.store(known, unit)
    tl.store(known + C, tl.sum(r32 * r32, 1))
    tl.debug_barrier()
    rr = tl.load(known + C)
    mask = tl.load(weights + p * C * C + t[:, None] * C + t[None, :]).to(tl.float16)
    start = (tl.load(before + p * C + t) * tl.load(gram_unit + p)).to(tl.float16)
    H = tl.load(gram + p * 2 * K * K + square, mask=whole, other=0.0)
    size = tl.zeros_like(rr)
    live = rr > 0.0
    taken = 0
    passes = 0
    while (passes == 0) | ((passes < PASSES) & (taken < max_steps) & (tl.max(live.to(tl.int32), 0) > 0)):
        # A pass works on r / |r| * 16: far from both ends of float16.
        shrink = tl.where(live, 16.0 / tl.sqrt(tl.where(live, rr, 1.0)), 0.0)
        target = tl.maximum(16.0 * GAIN, 0.5 * allowed * size * shrink)
        target *= target
        r = (r32 * shrink[:, None]).to(tl.float16)
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

        # `here` is place, which the compiler cannot know: so addresses are made here again, not held, and spilled,
        # through the loops.
        here = place + (taken >> 30)
        again = here // R
        grow = tl.where(live, 1.0 / (64.0 * tl.where(live, shrink, 1.0)), 0.0)
        tl.debug_barrier()
        tl.store(parts + (here * PASSES + passes) * C * K + cells, d16, mask=(j < K)[None, :])
        tl.store(measures + (here * (2 + PASSES) + 2 + passes) * C + t, grow)
        own = d16.to(tl.float32) * tl.load(scale + (again // N) % G * K + j, mask=j < K, other=0.0)[None, :]
        added = tl.sqrt(tl.sum(own * own, 1)) * grow
        size = tl.where(passes > 0, tl.maximum(size - added, 0.0), added)  # at most |x|
        # The true residual, r -= A d, in float16 halves.
        w = tl.dot(d16, tl.trans(k))
        w = tl.dot(d16, tl.trans(k_low), w) * tl.load(weights + again * C * C + t[:, None] * C + t[None, :])
        w_high, w_low = split(w)
        tl.debug_barrier()
        a = tl.dot(d16, tl.load(gram + again * 2 * K * K + K * K + square, mask=whole, other=0.0))
        a = tl.dot(d16, H, a)
        a *= (tl.load(before + again * C + t) * tl.load(gram_unit + again))[:, None]
        a += (d16 * tl.cast(1 + (taken >> 30), tl.float16)).to(tl.float32)
        tl.debug_barrier()
        left_over = tl.load(rest + here * C * K + cells, mask=(j < K)[None, :], other=0.0)
        a -= left_over * tl.where(live, 64.0 * shrink, 0.0)[:, None]
        a = tl.dot(w_high, k, a)
        a = tl.dot(w_low, k, a)
        a = tl.dot(w_high, k_low, a)
        r32 = a * -grow[:, None]
        tl.debug_barrier()
        tl.store(rest + here * C * K + cells, r32, mask=(j < K)[None, :])
        last = rr
        rr = tl.where(live, tl.sum(r32 * r32, 1), rr)
        live = (rr > allowed * allowed * size * size) & (rr < 0.25 * last)
        taken += 2
        passes += 1

    # Where things lie is found again, so that no register holds it through the loops.
    place += taken >> 30
    p = place // R
    b, g, first, left = locate(p, T, G, N, C)
    head = g * R + (place % R).to(tl.int32)
    failed = tl.max((rr <= allowed * allowed * size * size).to(tl.int32) ^ 1, 0)  # also where there is no number
    tl.store(marks + place, failed)
    tl.store(steps + (b * N + p % N) * heads + head, tl.minimum(taken, max_steps))
    tl.debug_barrier()
    known = measures + place * (2 + PASSES) * C + t
    full = tl.zeros([C, BK], tl.float32)
    for n in range(passes):
        part = tl.load(parts + (place * PASSES + n) * C * K + cells, mask=(j < K)[None, :], other=0.0)
        full += part.to(tl.float32) * tl.load(known + (2 + n) * C)[:, None]
    row = tl.load(scale + g * K + j, mask=j < K, other=0.0)
    x += ((b * T + first) * heads + head) * K
    store_columns(x, full * row[None, :] * tl.load(known)[:, None], heads * K, left, j, K, C)
    if not ADJOINT:
        size = divisor(tl.max(tl.abs(full), 1)) * (1.0 / 16.0)
        y, z = split(full * (1.0 / size)[:, None])
        k, k_low = load_key(key + ((b * T + first) * G + g) * K, G * K, left, scale + g * K, lift + p * C, j, K, C)
        w = tl.dot(y, tl.trans(k))
        w = tl.dot(z, tl.trans(k), w)
        w = tl.dot(y, tl.trans(k_low), w) * load_weights(weights + p * C * C, lift + p * C, C)
        narrow = divisor(tl.max(tl.abs(w), 1)) * (1.0 / 4096.0)
        w_high, w_low = split(w * (1.0 / narrow)[:, None])
        through = tl.load(before + p * C + t) * tl.load(cross_unit + p)
        cross += p * 2 * K * V
        value += ((b * T + first) * G + g) * V
        ends += ((b * T + first) * heads + head) * V
        for begin in range(0, V, BV):
            v = begin + tl.arange(0, BV)
            places = i[:, None] * V + v[None, :]
            inside = (i < K)[:, None] & (v < V)[None, :]
            upper = tl.load(cross + places, mask=inside, other=0.0)
            o = tl.dot(y, upper)
            o = tl.dot(z, upper, o)
            o = tl.dot(y, tl.load(cross + K * V + places, mask=inside, other=0.0), o) * through[:, None]
            values, wide = load_values(value, G * V, left, v, V, C)
            part = tl.dot(w_high, values)
            part = tl.dot(w_low, values, part)
            o += part * (narrow * wide)[:, None]
            store_columns(ends, o * (size * tl.load(known))[:, None], heads * V, left, v, V, C)

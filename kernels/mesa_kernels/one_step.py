"""Take one step of decoding: a token enters the states, one system per query head is solved, and the states are read.

    H = gamma H + beta k k'      G = gamma G + beta k v'      o = G' (H + diag(ridge))^-1 q

The system, scaled by the ridge to A = s H s + 1, is solved by conjugate gradients (Hestenes and Stiefel 1952). Its
solution is accepted if the true residual certifies the tolerance (docs/mathematics.md), or if no entry of it exceeds
the effect of rounding the entries of A to float32: then x solves a system within rounding of the given one
(Oettli and Prager 1964), and a factorisation could guarantee no more. If neither happens within the steps allowed, A is
factored by Cholesky in the lower half of the new gram, which is afterwards restored from the upper half by symmetry.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import factor

STEPS_A_SIZE = 2
"""Maximum steps of conjugate gradients divided by the key size: exact arithmetic needs at most 1, and a factorisation
takes about as long, since its columns depend on one another like steps."""
HELD_SIZE = 128
"""Largest key size, rounded up to a power of two, for which A stays in registers."""
RESTARTS = 4
"""Maximum restarts from a recomputed residual, after which a system is factored."""
ROUNDING = 2.0**-22
"""Share of |A| |x| + |b| that counts as rounding in an entry of the residual: 4 units of 2^-24, for the residual's own
sums are rounded too."""


@triton.jit
def update_gram(
    gram, stride, key, gamma, beta, scale, out, out_stride, K, HELD: tl.constexpr, BK: tl.constexpr, BI: tl.constexpr
):
    """Write the new gram `[K, K]` from the symmetric part of the one before; give A `[BK, BK]` if HELD, else 0.

    HELD: A stays in registers, and BI is BK.
    """
    j = tl.arange(0, BK)
    column = tl.load(key + j, mask=j < K, other=0.0).to(tl.float32)
    columns = tl.load(scale + j, mask=j < K, other=0.0)
    held = 0.0
    for begin in tl.static_range(0, BK, BI):
        i = begin + tl.arange(0, BI)
        row = tl.load(key + i, mask=i < K, other=0.0).to(tl.float32)
        rows = tl.load(scale + i, mask=i < K, other=0.0)
        inside = (i < K)[:, None] & (j < K)[None, :]
        h = tl.load(gram + i[:, None] * stride + j[None, :], mask=inside, other=0.0)
        across = (j < K)[:, None] & (i < K)[None, :]
        h += tl.trans(tl.load(gram + j[:, None] * stride + i[None, :], mask=across, other=0.0))
        h = (0.5 * gamma) * h + beta * (row[:, None] * column[None, :])  # the same bits on both sides of the diagonal
        tl.store(out + i[:, None] * out_stride + j[None, :], h, mask=inside)
        if HELD:
            held = rows[:, None] * columns[None, :] * h + tl.where(i[:, None] == j[None, :], 1.0, 0.0)
    return held


@triton.jit
def multiply(
    held,
    gram,
    stride,
    scale,
    v,
    memory,
    K,
    SIGNED: tl.constexpr,
    HELD: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Multiply A by v `[BK]`: A in registers if HELD, else made of the gram in memory; memory `[K]` to work in.

    SIGNED: A is taken as it is; if not, its entries' sizes and those of v.
    """
    if not SIGNED:
        v = tl.abs(v)
    if HELD:
        return tl.sum((held if SIGNED else tl.abs(held)) * v[:, None], 0)
    k = tl.arange(0, BK)
    s = tl.load(scale + k, mask=k < K, other=0.0)
    tl.debug_barrier()
    tl.store(memory + k, v * s, mask=k < K)
    tl.debug_barrier()
    product = tl.zeros([BK], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        w = tl.load(memory + i, mask=i < K, other=0.0)
        inside = (i < K)[:, None] & (k < K)[None, :]
        h = tl.load(gram + i[:, None] * stride + k[None, :], mask=inside, other=0.0)
        product += tl.sum((h if SIGNED else tl.abs(h)) * w[:, None], 0)
    return product * s + v


@triton.jit
def load_unit(query, scale, K, BK: tl.constexpr):
    """Load one scaled query `[K]` as a unit vector `[BK]` and its norm."""
    k = tl.arange(0, BK)
    b = tl.load(query + k, mask=k < K, other=0.0).to(tl.float32) * tl.load(scale + k, mask=k < K, other=0.0)
    largest = tl.max(tl.abs(b), 0)
    b = b / tl.where(largest > 0.0, largest, 1.0)
    norm = tl.sqrt(tl.sum(b * b, 0))
    return b / tl.where(norm > 0.0, norm, 1.0), norm * largest


@triton.jit
def allow(x, s, limit):
    """Return the residual norm that certifies the tolerance at x `[BK]`."""
    return tl.sqrt(tl.sum(x * s * x * s, 0)) * (limit / tl.max(s, 0))


@triton.jit
def descend(
    b,
    held,
    gram,
    stride,
    scale,
    memory,
    limit,
    max_steps,
    K,
    HELD: tl.constexpr,
    RESTARTS: tl.constexpr,
    ROUNDING: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Solve A x = b `[BK]`, of unit norm, by conjugate gradients; give x, the steps, and 1 if x is done, else 0."""
    k = tl.arange(0, BK)
    s = tl.load(scale + k, mask=k < K, other=0.0)
    x = tl.zeros([BK], tl.float32)
    r = b
    taken = 0
    done = 0
    restarts = 0
    while (done == 0) & (restarts <= RESTARTS):
        p = r
        rr = tl.sum(r * r, 0)
        moving = 1
        while moving == 1:
            product = multiply(held, gram, stride, scale, p, memory, K, True, HELD, BK, BI)
            curvature = tl.sum(p * product, 0)
            # A residual far below any tolerance is done, and its square would underflow.
            sound = (curvature > 0.0) & (rr > 1e-32) & (taken < max_steps)
            alpha = tl.where(sound, rr / tl.where(sound, curvature, 1.0), 0.0)
            x += alpha * p
            r -= alpha * product
            new = tl.where(sound, tl.sum(r * r, 0), rr)
            p = r + tl.where(sound, new / tl.where(sound, rr, 1.0), 0.0) * p
            rr = new
            taken += sound.to(tl.int32)
            moving = (sound & (tl.sqrt(rr) > 0.75 * allow(x, s, limit))).to(tl.int32)
        # The recursive residual drifts from the true one: compute that, and restart if it fails the test.
        r = b - multiply(held, gram, stride, scale, x, memory, K, True, HELD, BK, BI)
        done = (tl.sqrt(tl.sum(r * r, 0)) <= allow(x, s, limit)).to(tl.int32)
        if done == 0:
            entries = multiply(held, gram, stride, scale, x, memory, K, False, HELD, BK, BI) + tl.abs(b)
            done = tl.min((tl.abs(r) <= ROUNDING * entries).to(tl.int32), 0)
        restarts = tl.where(taken < max_steps, restarts + 1, RESTARTS + 1)
    return x, taken, done


@triton.jit
def factor_below(gram, stride, scale, roots, K, BK: tl.constexpr, BI: tl.constexpr):
    """Factor A = L L' column by column: L below the diagonal of the gram, its diagonal to roots `[K]`.

    No pivot of A = s H s + 1 is below 1 (no eigenvalue is), so that one which rounding makes smaller counts as 1.
    """
    k = tl.arange(0, BK)
    s = tl.load(scale + k, mask=k < K, other=0.0)
    for j in range(K):
        below = (k >= j) & (k < K)
        column = tl.load(gram + j * stride + k, mask=below, other=0.0) * s * tl.load(scale + j)
        column += tl.where(k == j, 1.0, 0.0)
        for begin in range(0, j, BI):
            m = begin + tl.arange(0, BI)
            row = tl.load(gram + j * stride + m, mask=m < j, other=0.0)
            inside = below[:, None] & (m < j)[None, :]
            rest = tl.load(gram + k[:, None] * stride + m[None, :], mask=inside, other=0.0)
            column -= tl.sum(rest * row[None, :], 1)
        root = tl.sqrt(tl.maximum(tl.sum(tl.where(k == j, column, 0.0), 0), 1.0))
        tl.store(gram + k * stride + j, column / root, mask=(k > j) & (k < K))
        tl.store(roots + j, root)
        tl.debug_barrier()


@triton.jit
def substitute(b, gram, stride, roots, K, BK: tl.constexpr):
    """Solve L L' x = b `[BK]` with what `factor_below` made."""
    k = tl.arange(0, BK)
    x = b
    for j in range(K):
        row = tl.load(gram + j * stride + k, mask=k < j, other=0.0)
        entry = tl.sum(tl.where(k == j, x, 0.0) - row * x, 0) / tl.load(roots + j)
        x = tl.where(k == j, entry, x)
    for place in range(K):
        j = K - 1 - place
        column = tl.load(gram + k * stride + j, mask=(k > j) & (k < K), other=0.0)
        entry = tl.sum(tl.where(k == j, x, 0.0) - column * x, 0) / tl.load(roots + j)
        x = tl.where(k == j, entry, x)
    return x


@triton.jit
def restore_below(gram, stride, K, BK: tl.constexpr, BI: tl.constexpr):
    """Write the gram's upper half over its lower one."""
    j = tl.arange(0, BK)
    tl.debug_barrier()
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        inside = (j[:, None] < i[None, :]) & (i < K)[None, :]
        h = tl.load(gram + j[:, None] * stride + i[None, :], mask=inside, other=0.0)
        inside = (j[None, :] < i[:, None]) & (i < K)[:, None]
        tl.store(gram + i[:, None] * stride + j[None, :], tl.trans(h), mask=inside)


@triton.jit(do_not_specialize=["max_steps"])
def one_step_kernel(
    query,  # [B, G, R, K]
    key,  # [B, G, K]
    value,  # [B, G, V]
    log_forget,  # [B, G]
    input_gate,  # [B, G]
    scale,  # [G, K] float32: 1 / sqrt(ridge)
    gram,  # [B, G, K, K] float32, rows of any strides
    cross,  # [B, G, K, V] float32, rows of any strides
    state,  # [B, G, K, K + V] float32: the new gram and cross beside one another
    output,  # [B, G, R, V]
    solution,  # [B, G, R, K] float32
    steps,  # [B, G, R] int32, 0 where A was factored
    memory,  # [B, G, 2, K] float32
    limit,
    max_steps,
    gram_batch,
    gram_head,
    gram_stride,
    cross_batch,
    cross_head,
    cross_stride,
    G,
    R,
    K,
    V,
    HELD: tl.constexpr,
    RESTARTS: tl.constexpr,
    ROUNDING: tl.constexpr,
    FLOOR: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """One program per sequence and key head, whose query heads share one load of the state."""
    bg = tl.program_id(0).to(tl.int64)
    b, g = bg // G, bg % G
    k = tl.arange(0, BK)
    stride = K + V
    new = state + bg * K * stride
    key += bg * K
    value += bg * V
    scale += g * K
    query += bg * R * K
    solution += bg * R * K
    memory += bg * 2 * K
    gamma = factor(tl.load(log_forget + bg).to(tl.float32), FLOOR)
    beta = tl.load(input_gate + bg).to(tl.float32)
    gram += b * gram_batch + g * gram_head
    held = update_gram(gram, gram_stride, key, gamma, beta, scale, new, stride, K, HELD, BK, BI)
    tl.debug_barrier()
    s = tl.load(scale + k, mask=k < K, other=0.0)
    failed = 0
    for r in range(R):
        unit, size = load_unit(query + r * K, scale, K, BK)
        x, taken, done = descend(
            unit, held, new, stride, scale, memory, limit, max_steps, K, HELD, RESTARTS, ROUNDING, BK, BI
        )
        tl.store(solution + r * K + k, x * s * size, mask=k < K)
        tl.store(steps + bg * R + r, tl.where(done == 1, taken, -1))
        failed += 1 - done
    tl.debug_barrier()
    if failed > 0:
        factor_below(new, stride, scale, memory + K, K, BK, BI)
        for r in range(R):
            if tl.load(steps + bg * R + r) < 0:
                unit, size = load_unit(query + r * K, scale, K, BK)
                x = substitute(unit, new, stride, memory + K, K, BK)
                tl.store(solution + r * K + k, x * s * size, mask=k < K)
                tl.debug_barrier()
                tl.store(steps + bg * R + r, 0)
        restore_below(new, stride, K, BK, BI)
        tl.debug_barrier()
    written = beta * tl.load(key + k, mask=k < K, other=0.0).to(tl.float32)
    cross += b * cross_batch + g * cross_head
    for begin in range(0, V, BJ):
        j = begin + tl.arange(0, BJ)
        inside = (k < K)[:, None] & (j < V)[None, :]
        c = tl.load(cross + k[:, None] * cross_stride + j[None, :], mask=inside, other=0.0) * gamma
        c += written[:, None] * tl.load(value + j, mask=j < V, other=0.0).to(tl.float32)[None, :]
        tl.store(new + K + k[:, None] * stride + j[None, :], c, mask=inside)
        for r in range(R):
            x = tl.load(solution + r * K + k, mask=k < K, other=0.0)
            tl.store(output + (bg * R + r) * V + j, tl.sum(c * x[:, None], 0), mask=j < V)

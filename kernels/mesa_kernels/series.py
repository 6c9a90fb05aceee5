"""Solve by the series of the shared factor, x = 2 P sum'_j e_j T_j(2 P - 1) b (docs/solver.md), in two ways.

`series_kernel` works in float32 throughout. Vectors of the recurrence lie in memory that stays in the cache, and
products run over slices, so that any key size fits. `half_kernel` holds N, U and the vectors in registers and shared
memory and multiplies with float16 operands; rows are of unit norm and no eigenvalue of P is above 1, so that nothing
overflows. What 11 bits lose is put right by passes over the true residual in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_unit, multiply_system, store_rows, store_tokens
from .tiles import factor, gather, load_block, load_decay, load_rows, load_sums, locate, project, store_block


@triton.jit
def load_ratio(log_ratio, p, C: tl.constexpr):
    """Load sqrt(r) and q = (1 - sqrt r) / (1 + sqrt r) `[C]`."""
    root = tl.exp(0.5 * tl.load(log_ratio + p * C + tl.arange(0, C)))
    return root, (1.0 - root) / (1.0 + root)


@triton.jit
def weigh(j, m, root, power, log_q):
    """Give the coefficients e_j `[C]` of the sum of m products, not halved; power = q^j, log_q = log2 |q|."""
    return root * power * (1.0 - tl.exp2(2.0 * (m - j) * log_q)) / (1.0 + tl.exp2(2.0 * m * log_q))


@triton.jit
def load_masks(stretch, p, C: tl.constexpr):
    """Load the masks of a chunk with restarts: minus 1 from a token to itself and later ones of its stretch; 1 before
    the first restart, where N is carried."""
    t = tl.arange(0, C)
    number = tl.load(stretch + p * C + t)
    same = (number[:, None] == number[None, :]) & (t[:, None] >= t[None, :])
    return tl.where(same, -1.0, 0.0), tl.where(number == 0, 1.0, 0.0)


@triton.jit
def multiply_factor(
    rows,
    memory,
    carried,
    gains,
    stretch,
    p,
    K,
    DOT: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Multiply rows `[C, K]` in memory by their token's 2 P: `[C, BK]`; memory: `[C, C]` to work in."""
    vectors = gains + p * C * K
    product, scores = project(rows, K, carried + p * K * K, vectors, K, C, carried, K, DOT, False, C, BK, BI)
    mask, first = load_masks(stretch, p, C)
    product *= first[:, None]
    product = gather(product, scores * mask, memory, vectors, K, C, K, DOT, C, BK, BI)
    return 2.0 * (product + (1.0 - first)[:, None] * load_block(rows, K, C, BK))


@triton.jit
def sum_series(
    own, unit, carried, gains, log_ratio, stretch, p, m, K, DOT: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BI: tl.constexpr,
):  # fmt: skip
    """Sum m products of the series for unit rows `[C, BK]`; own: memory for four blocks `[C, K]` and one `[C, C]`."""
    memory = own + 4 * C * K
    root, q = load_ratio(log_ratio, p, C)
    log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
    total = 0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * unit
    power = q
    store_block(own, unit, K, C, BK)
    running = own + 3 * C * K
    store_block(running, total, K, C, BK)
    for j in range(1, m):
        current = own + ((j - 1) % 2) * C * K
        other = own + (j % 2) * C * K
        y = multiply_factor(current, memory, carried, gains, stretch, p, K, DOT, C, BK, BI)
        y -= load_block(current, K, C, BK)
        if j > 1:
            y = 2.0 * y - load_block(other, K, C, BK)
        total = load_block(running, K, C, BK) + weigh(j, m, root, power, log_q)[:, None] * y
        store_block(running, total, K, C, BK)
        power *= q
        store_block(other, y, K, C, BK)
    return multiply_factor(running, memory, carried, gains, stretch, p, K, DOT, C, BK, BI)


@triton.jit
def series_kernel(
    rhs,  # [B, T, H, K]
    out,  # [B, T, H, K] float32
    steps,  # [B, N, H] int32
    key,  # [B, T, G, K]
    input_gate,  # [B, T, G]
    high,
    low,
    gram,  # [P, K, K]
    scale,  # [G, K]
    log_ratio,
    stretch,
    plan,  # [P, 4]
    carried,  # [P, K, K]
    gains,  # [P, C, K]
    vectors,  # [programs, 4 C K + C C] float32
    problems,
    T,
    G,
    R,
    N,
    K,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Programs go through problems and query heads in turn, each with memory of its own."""
    programs = tl.num_programs(0)
    own = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + C * C)
    solution = own + 2 * C * K
    for place in range(tl.program_id(0), problems * R, programs):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 1:
            b, g, first, _left = locate(p, T, G, N, C)
            head = g * R + place % R
            unit, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
            m = tl.load(plan + 4 * p + 1)
            later = tl.load(plan + 4 * p + 2)
            passes = tl.load(plan + 4 * p + 3)
            x = sum_series(own, unit, carried, gains, log_ratio, stretch, p, m, K, DOT, C, BK, BI)
            store_block(solution, x, K, C, BK)
            for _number in range(1, passes):
                product = multiply_system(
                    solution,
                    own + 4 * C * K,
                    key,
                    input_gate,
                    high,
                    low,
                    gram,
                    scale,
                    p,
                    T,
                    G,
                    N,
                    K,
                    DOT,
                    FLOOR,
                    C,
                    BK,
                    BI,
                )
                rest, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
                rest -= product
                y = sum_series(own, rest, carried, gains, log_ratio, stretch, p, later, K, DOT, C, BK, BI)
                store_block(solution, load_block(solution, K, C, BK) + y, K, C, BK)
            x = load_block(solution, K, C, BK)
            store_rows(out, x, scale, largest, norm, b, first, g, head, G * R, K, T, C, BK)
            tl.store(steps + (b * N + p % N) * (G * R) + head, m + (passes - 1) * (later + 1))


@triton.jit
def apply_half(v, matrix, gains, stretch, p, C: tl.constexpr):
    """Multiply rows v `[C, BK]` by P; v, matrix N `[BK, BK]` and gains U `[C, BK]` are float16, the result float32."""
    scores = tl.dot(v, tl.trans(gains))
    mask, first = load_masks(stretch, p, C)
    y = tl.dot(v, matrix) * first[:, None]
    y = tl.dot((scores * mask).to(tl.float16), gains, y)
    return y + (1.0 - first)[:, None] * v


@triton.jit
def half_kernel(
    rhs,  # [B, T, H, K]
    out,  # [B, T, H, K] float32
    steps,  # [B, N, H] int32
    scale,  # [G, K]
    log_ratio,
    stretch,
    plan,
    carried,
    gains,
    T,
    G,
    R,
    N,
    K,
    LATER: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """One program a problem and query head makes one pass; a later pass adds what a residual asks for.

    Vectors of the recurrence are float16 too: two steps of it and the sum then fit in registers beside a product.
    """
    p = tl.program_id(0).to(tl.int64)
    if tl.load(plan + 4 * p) != 2:
        return
    b, g, first, _left = locate(p, T, G, N, C)
    head = g * R + tl.program_id(1)
    k = tl.arange(0, BK)
    square = (k < K)[:, None] & (k < K)[None, :]
    matrix = tl.load(carried + p * K * K + k[:, None] * K + k[None, :], mask=square, other=0.0).to(tl.float16)
    narrow = load_block(gains + p * C * K, K, C, BK).to(tl.float16)
    root, q = load_ratio(log_ratio, p, C)
    log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
    m = tl.load(plan + 4 * p + 1)
    v, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
    total = (0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * v).to(tl.float16)
    power = q
    current = v.to(tl.float16)
    last = tl.zeros([C, BK], tl.float16)
    for j in range(1, m):
        # T_1 = Y v, then T_{j + 1} = 2 Y T_j - T_{j - 1}
        y = 2.0 * apply_half(current, matrix, narrow, stretch, p, C) - current
        y = tl.where(j > 1, 2.0, 1.0) * y - last
        total = (total + weigh(j, m, root, power, log_q)[:, None] * y).to(tl.float16)
        power *= q
        last = current
        current = y.to(tl.float16)
    v = 2.0 * apply_half(total, matrix, narrow, stretch, p, C)
    count = steps + (b * N + p % N) * (G * R) + head
    if LATER:
        v = v * (norm * largest)[:, None] * tl.load(scale + g * K + k, mask=k < K, other=0.0)[None, :]
        v += load_rows(out, b, first, head, G * R, K, k, T, C)
        store_tokens(out, v, b, first, head, G * R, K, T, C, BK)
        tl.store(count, tl.load(count) + m + 1)
    else:
        store_rows(out, v, scale, largest, norm, b, first, g, head, G * R, K, T, C, BK)
        tl.store(count, m)


@triton.jit
def residual_kernel(
    rhs,  # [B, T, H, K]
    solution,  # [B, T, H, K] float32
    out,  # [B, T, H, K] float32: rhs - (H_t + ridge) solution
    key,
    input_gate,
    high,
    low,
    gram,
    ridge,  # [G, K] float32
    plan,
    vectors,  # [programs, 4 C K + C C] float32
    problems,
    T,
    G,
    R,
    N,
    K,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Programs go through the problems that are solved with float16 operands; all in the caller's units."""
    memory = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + C * C)
    k = tl.arange(0, BK)
    for place in range(tl.program_id(0), problems * R, tl.num_programs(0)):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 2:
            b, g, first, left = locate(p, T, G, N, C)
            head = g * R + place % R
            keys = key + ((b * T + first) * G + g) * K
            rows = solution + ((b * T + first) * (G * R) + head) * K
            product, scores = project(
                rows, G * R * K, gram + p * K * K, keys, G * K, left, ridge, K, DOT, False, C, BK, BI
            )
            c, d = load_sums(high, low, p, C)
            product *= factor(c + d, FLOOR)[:, None]
            scores *= load_decay(high, low, input_gate, p, T, G, N, FLOOR, C)
            product = gather(product, scores, memory, keys, G * K, left, K, DOT, C, BK, BI)
            x = load_rows(solution, b, first, head, G * R, K, k, T, C)
            product += x * tl.load(ridge + g * K + k, mask=k < K, other=0.0)[None, :]
            v = load_rows(rhs, b, first, head, G * R, K, k, T, C) - product
            store_tokens(out, v, b, first, head, G * R, K, T, C, BK)

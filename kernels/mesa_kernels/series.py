"""Solve by the series of the shared factor, x = 2 P sum'_j e_j T_j(2 P - 1) b (docs/solver.md), in two ways.

`series_kernel` works in float32 throughout. Vectors of the recurrence lie in memory that stays in the cache, and
products run over slices, so that any key size fits. `half_kernel` holds N, U and the vectors in registers and shared
memory and multiplies with float16 operands; rows are of unit norm and no eigenvalue of P is above 1, so that nothing
overflows. What 11 bits lose is put right by passes over the true residual in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_block, load_unit, multiply_system, store_block, store_rows
from .tiles import apply_matrix, locate


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
def sum_series(
    vectors, unit, carried, gains, log_ratio, stretch, p, m, K, DOT: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BI: tl.constexpr,
):  # fmt: skip
    """Sum m products of the series for unit rows `[C, BK]`; vectors: memory for two blocks `[C, K]`."""
    mask, first = load_masks(stretch, p, C)
    root, q = load_ratio(log_ratio, p, C)
    log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
    matrix = carried + p * K * K
    rows = gains + p * C * K
    total = 0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * unit
    power = q
    store_block(vectors, unit, K, C, BK)
    for j in range(1, m):
        current = vectors + ((j - 1) % 2) * C * K
        other = vectors + (j % 2) * C * K
        v = load_block(current, K, C, BK)
        y = apply_matrix(current, matrix, rows, K, C, matrix, mask, first, K, DOT, False, C, BK, BI)
        y = 2.0 * (y + (1.0 - first)[:, None] * v) - v
        if j > 1:
            y = 2.0 * y - load_block(other, K, C, BK)
        total += weigh(j, m, root, power, log_q)[:, None] * y
        power *= q
        store_block(other, y, K, C, BK)
    store_block(vectors, total, K, C, BK)
    y = apply_matrix(vectors, matrix, rows, K, C, matrix, mask, first, K, DOT, False, C, BK, BI)
    return 2.0 * (y + (1.0 - first)[:, None] * total)


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
    vectors,  # [programs, 3, C, K] float32
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
    own = vectors + tl.program_id(0).to(tl.int64) * 3 * C * K
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
                    solution, key, input_gate, high, low, gram, scale, p, T, G, N, K, DOT, FLOOR, C, BK, BI
                )
                rest, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
                rest -= product
                y = sum_series(own, rest, carried, gains, log_ratio, stretch, p, later, K, DOT, C, BK, BI)
                store_block(solution, load_block(solution, K, C, BK) + y, K, C, BK)
            x = load_block(solution, K, C, BK)
            store_rows(out, x, scale, largest, norm, b, first, g, head, G * R, K, T, C, BK)
            tl.store(steps + (b * N + p % N) * (G * R) + head, m + (passes - 1) * (later + 1))


@triton.jit
def apply_half(v, matrix, gains, mask, first):
    """Multiply rows v `[C, BK]` by P with float16 operands; matrix `[BK, BK]` and gains `[C, BK]` are float16."""
    narrow = v.to(tl.float16)
    scores = tl.dot(narrow, tl.trans(gains))
    y = tl.dot((v * first[:, None]).to(tl.float16), matrix)
    y = tl.dot((scores * mask).to(tl.float16), gains, y)
    return y + (1.0 - first)[:, None] * v


@triton.jit
def half_kernel(
    rhs,
    out,
    steps,
    key,
    input_gate,
    high,
    low,
    gram,
    scale,
    log_ratio,
    stretch,
    plan,
    carried,
    gains,
    vectors,  # [programs, 3, C, K] float32
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
    """As `series_kernel`, with float16 operands."""
    programs = tl.num_programs(0)
    solution = vectors + tl.program_id(0).to(tl.int64) * 3 * C * K
    k = tl.arange(0, BK)
    for place in range(tl.program_id(0), problems * R, programs):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 2:
            b, g, first, _left = locate(p, T, G, N, C)
            head = g * R + place % R
            square = (k < K)[:, None] & (k < K)[None, :]
            matrix = tl.load(carried + p * K * K + k[:, None] * K + k[None, :], mask=square, other=0.0).to(tl.float16)
            narrow = load_block(gains + p * C * K, K, C, BK).to(tl.float16)
            mask, early = load_masks(stretch, p, C)
            root, q = load_ratio(log_ratio, p, C)
            log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
            m = tl.load(plan + 4 * p + 1)
            passes = tl.load(plan + 4 * p + 3)
            for number in range(passes):
                v, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
                size = tl.full([C], 1.0, tl.float32)
                if number > 0:
                    v -= multiply_system(
                        solution, key, input_gate, high, low, gram, scale, p, T, G, N, K, DOT, FLOOR, C, BK, BI
                    )
                    size = tl.max(tl.abs(v), 1)
                    v = v / tl.where(size > 0.0, size, 1.0)[:, None]
                total = 0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * v
                power = q
                last = tl.zeros([C, BK], tl.float32)
                for j in range(1, m):
                    y = 2.0 * apply_half(v, matrix, narrow, mask, early) - v
                    # T_1 = Y v, then T_{j + 1} = 2 Y T_j - T_{j - 1}
                    y = tl.where(j > 1, 2.0, 1.0) * y - last
                    total += weigh(j, m, root, power, log_q)[:, None] * y
                    power *= q
                    last = v
                    v = y
                total = 2.0 * apply_half(total, matrix, narrow, mask, early) * size[:, None]
                if number > 0:
                    total += load_block(solution, K, C, BK)
                store_block(solution, total, K, C, BK)
            v, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
            total = load_block(solution, K, C, BK)
            store_rows(out, total, scale, largest, norm, b, first, g, head, G * R, K, T, C, BK)
            tl.store(steps + (b * N + p % N) * (G * R) + head, passes * (m + 1) - 1)

"""Solve by the series of the shared factor, x = 2 P sum'_j e_j T_j(2 P - 1) b (docs/solver.md), in two ways.

`series_kernel` works in float32 throughout. Vectors of the recurrence lie in memory that stays in the cache, and
products run over slices, so that any key size fits. `half_kernel` holds N, U and the vectors in registers and shared
memory and multiplies with float16 operands; rows are of unit norm and no eigenvalue of P is above 1, so that nothing
overflows. What 11 bits lose is put right by passes over the true residual in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_unit, measure_rows, multiply_system, store_rows, store_tokens
from .tiles import factor, load_columns, load_rows, load_sums, locate, mix, score, store_columns, store_decay


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
def load_mask(stretch, p, s, C: tl.constexpr):
    """Load the mask of sources s in a chunk with restarts: minus 1 to themselves and later tokens of their stretch."""
    t = tl.arange(0, C)
    same = tl.load(stretch + p * C + t)[:, None] == tl.load(stretch + p * C + s)[None, :]
    return tl.where(same & (t[:, None] >= s[None, :]), -1.0, 0.0)


@triton.jit
def load_first(stretch, p, C: tl.constexpr):
    """Load 1 `[C]` for tokens before the first restart, where N is carried, else 0."""
    return tl.where(tl.load(stretch + p * C + tl.arange(0, C)) == 0, 1.0, 0.0)


@triton.jit
def store_mask(memory, stretch, p, C: tl.constexpr, BI: tl.constexpr):
    """Store `load_mask` of all sources to memory `[C, C]`, for `score`."""
    for begin in range(0, C, BI):
        s = begin + tl.arange(0, BI)
        store_columns(memory, load_mask(stretch, p, s, C), C, C, s, C, C)


@triton.jit
def sum_series(
    own, carried, gains, log_ratio, stretch, p, m, K, DOT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr
):  # fmt: skip
    """Add the sum of m products of the series for the rows in block 0 of `own` to its block 2.

    own: memory for four blocks `[C, K]` and two `[C, C]`. Blocks 0 and 1 take turns with the recurrence, block 3 holds
    the sum before its last product, which is the last turn of the loop.
    """
    solution = own + 2 * C * K
    running = own + 3 * C * K
    memory = own + 4 * C * K
    matrix = carried + p * K * K
    vectors = gains + p * C * K
    store_mask(memory + C * C, stretch, p, C, BI)
    carries = load_first(stretch, p, C)
    begin, carries = load_begin(stretch, p, C), load_first(stretch, p, C)
    root, q = load_ratio(log_ratio, p, C)
    log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
    for begin in range(0, K, BI):
        j = begin + tl.arange(0, BI)
        start = 0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * load_columns(own, K, C, j, K, C)
        store_columns(running, start, K, C, j, K, C)
    power = q
    for n in range(1, m + 1):
        current = tl.where(n == m, 3, (n - 1) % 2) * (C * K) + own
        other = own + (n % 2) * C * K
        score(current, K, vectors, K, C, vectors, memory, K, DOT, False, C, BI)
        weight = weigh(n, m, root, power, log_q)
        for begin in range(0, K, BI):
            j = begin + tl.arange(0, BI)
            v = load_columns(current, K, C, j, K, C)
            y = mix(current, K, matrix, carries, vectors, K, C, vectors, memory, j, K, DOT, False, C, BI)
            y = 2.0 * (y + (1.0 - carries)[:, None] * v)
            if n == m:
                store_columns(solution, load_columns(solution, K, C, j, K, C) + y, K, C, j, K, C)
            else:
                y -= v
                if n > 1:
                    y = 2.0 * y - load_columns(other, K, C, j, K, C)
                store_columns(other, y, K, C, j, K, C)
                y = load_columns(running, K, C, j, K, C) + weight[:, None] * y
                store_columns(running, y, K, C, j, K, C)
        power *= q
    tl.debug_barrier()


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
    vectors,  # [programs, 4 C K + 2 C C] float32
    problems,
    T,
    G,
    R,
    N,
    K,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """Programs go through problems and query heads in turn, each with memory of its own.

    All of it is done by tiles of BI columns, so that registers hold one tile whatever the key size.
    """
    programs = tl.num_programs(0)
    own = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + 2 * C * C)
    solution = own + 2 * C * K
    memory = own + 4 * C * K
    for place in range(tl.program_id(0), problems * R, programs):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 1:
            b, g, first, left = locate(p, T, G, N, C)
            head = g * R + place % R
            root = scale + g * K
            keys = key + ((b * T + first) * G + g) * K
            c, d = load_sums(high, low, p, C)
            before = factor(c + d, FLOOR)
            m = tl.load(plan + 4 * p + 1)
            later = tl.load(plan + 4 * p + 2)
            passes = tl.load(plan + 4 * p + 3)
            largest, norm = measure_rows(rhs, root, b, first, head, G * R, K, T, C, BI)
            tl.debug_barrier()
            for begin in range(0, K, BI):
                j = begin + tl.arange(0, BI)
                store_columns(solution, tl.zeros([C, BI], tl.float32), K, C, j, K, C)
            for number in range(passes):
                if number > 0:
                    store_decay(memory + C * C, high, low, input_gate, p, T, G, N, FLOOR, C, BI)
                    score(solution, K, keys, G * K, left, root, memory, K, DOT, True, C, BI)
                for begin in range(0, K, BI):
                    j = begin + tl.arange(0, BI)
                    rest = load_unit(rhs, root, largest, norm, b, first, head, G * R, j, K, T, C)
                    if number > 0:
                        rest -= multiply_system(
                            solution, K, gram + p * K * K, before, keys, G * K, left, root, memory, j, K, DOT, True, C,
                            BI,
                        )  # fmt: skip
                    store_columns(own, rest, K, C, j, K, C)
                tl.debug_barrier()
                degree = tl.where(number > 0, later, m)
                sum_series(own, carried, gains, log_ratio, stretch, p, degree, K, DOT, C, BI)
            for begin in range(0, K, BI):
                j = begin + tl.arange(0, BI)
                x = load_columns(solution, K, C, j, K, C)
                store_rows(out, x, root, largest, norm, b, first, head, G * R, j, K, T, C)
            tl.store(steps + (b * N + p % N) * (G * R) + head, m + (passes - 1) * (later + 1))


@triton.jit
def load_begin(stretch, p, C: tl.constexpr):
    """Find where each token's stretch between restarts begins in the chunk: int32 `[C]`."""
    number = tl.load(stretch + p * C + tl.arange(0, C))
    return tl.sum((number[None, :] < number[:, None]).to(tl.int32), 1)


@triton.jit
def apply_half(v, matrix, gains, begin, first, C: tl.constexpr):
    """Multiply rows v `[C, BK]` by P; v, matrix N `[BK, BK]` and gains U `[C, BK]` are float16, the result float32.

    begin and first are those of `load_begin` and `load_first`, loaded once: the mask of `load_mask` is made of them
    with no address held in a loop.
    """
    t = tl.arange(0, C)
    scores = tl.dot(v, tl.trans(gains))
    seen = (t[None, :] >= begin[:, None]) & (t[:, None] >= t[None, :])
    y = tl.dot(v, matrix) * first[:, None]
    y = tl.dot(tl.where(seen, -scores, 0.0).to(tl.float16), gains, y)
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
    BI: tl.constexpr,
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
    narrow = load_columns(gains + p * C * K, K, C, k, K, C).to(tl.float16)
    begin, carries = load_begin(stretch, p, C), load_first(stretch, p, C)
    root, q = load_ratio(log_ratio, p, C)
    log_q = tl.log2(tl.maximum(tl.abs(q), 1e-30))
    m = tl.load(plan + 4 * p + 1)
    largest, norm = measure_rows(rhs, scale + g * K, b, first, head, G * R, K, T, C, BI)
    v = load_unit(rhs, scale + g * K, largest, norm, b, first, head, G * R, k, K, T, C)
    total = (0.5 * weigh(0, m, root, 1.0, log_q)[:, None] * v).to(tl.float16)
    power = q
    current = v.to(tl.float16)
    last = tl.zeros([C, BK], tl.float16)
    for j in range(1, m):
        # T_1 = Y v, then T_{j + 1} = 2 Y T_j - T_{j - 1}
        y = 2.0 * apply_half(current, matrix, narrow, begin, carries, C) - current
        y = tl.where(j > 1, 2.0, 1.0) * y - last
        total = (total + weigh(j, m, root, power, log_q)[:, None] * y).to(tl.float16)
        power *= q
        last = current
        current = y.to(tl.float16)
    v = 2.0 * apply_half(total, matrix, narrow, begin, carries, C)
    count = steps + (b * N + p % N) * (G * R) + head
    if LATER:
        v = v * (norm * largest)[:, None] * tl.load(scale + g * K + k, mask=k < K, other=0.0)[None, :]
        v += load_rows(out, b, first, head, G * R, K, k, T, C)
        store_tokens(out, v, b, first, head, G * R, k, K, T, C)
        tl.store(count, tl.load(count) + m + 1)
    else:
        store_rows(out, v, scale + g * K, largest, norm, b, first, head, G * R, k, K, T, C)
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
    vectors,  # [programs, 4 C K + 2 C C] float32
    problems,
    T,
    G,
    R,
    N,
    K,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """Programs go through the problems that are solved with float16 operands; all in the caller's units."""
    memory = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + 2 * C * C)
    for place in range(tl.program_id(0), problems * R, tl.num_programs(0)):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 2:
            b, g, first, left = locate(p, T, G, N, C)
            head = g * R + place % R
            stride = G * R * K
            rows = solution + ((b * T + first) * (G * R) + head) * K
            keys = key + ((b * T + first) * G + g) * K
            diagonal = ridge + g * K
            c, d = load_sums(high, low, p, C)
            before = factor(c + d, FLOOR)
            tl.debug_barrier()
            store_decay(memory + C * C, high, low, input_gate, p, T, G, N, FLOOR, C, BI)
            score(rows, stride, keys, G * K, left, diagonal, memory, K, DOT, False, C, BI)
            for begin in range(0, K, BI):
                j = begin + tl.arange(0, BI)
                product = multiply_system(
                    rows, stride, gram + p * K * K, before, keys, G * K, left, diagonal, memory, j, K, DOT, False, C, BI
                )
                rest = load_rows(rhs, b, first, head, G * R, K, j, T, C) - product
                store_tokens(out, rest, b, first, head, G * R, j, K, T, C)

"""Solve by conjugate gradients (Hestenes and Stiefel 1952) in float32, with vectors in global memory.

Used for float32 inputs, for key sizes above 128, and for problems that `solver` could not certify.

All guards are relative and every right-hand side has unit norm, so that the solution is linear in it over the whole
range of float32; the stopping rule bounds the error of x (docs/mathematics.md).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_unit, measure_rows, store_rows
from .tiles import factor, load_columns, load_sums, locate, multiply_system, score, store_columns, store_decay

REFINEMENTS = 4
"""Maximum restarts from a recomputed residual, after which a system is considered limited by float32."""


@triton.jit
def advance(own, root, alpha, K, C: tl.constexpr, BI: tl.constexpr):
    """Take a step alpha `[C]` on the blocks x, p, r and A p `[C, K]` in memory; return |r|^2 and |x|^2 `[C]`.

    |x| is in the caller's units: x is multiplied by the root first.
    """
    square = tl.zeros([C], tl.float32)
    size = tl.zeros([C], tl.float32)
    for begin in range(0, K, BI):
        j = begin + tl.arange(0, BI)
        x = load_columns(own, K, C, j, K, C) + alpha[:, None] * load_columns(own + C * K, K, C, j, K, C)
        store_columns(own, x, K, C, j, K, C)
        x *= tl.load(root + j, mask=j < K, other=0.0)[None, :]
        size += tl.sum(x * x, 1)
        r = load_columns(own + 2 * C * K, K, C, j, K, C)
        r -= alpha[:, None] * load_columns(own + 3 * C * K, K, C, j, K, C)
        store_columns(own + 2 * C * K, r, K, C, j, K, C)
        square += tl.sum(r * r, 1)
    tl.debug_barrier()
    return square, size


@triton.jit
def turn(own, beta, K, C: tl.constexpr, BI: tl.constexpr):
    """Update the search direction, p = r + beta p, in the blocks of `advance`."""
    for begin in range(0, K, BI):
        j = begin + tl.arange(0, BI)
        p = load_columns(own + 2 * C * K, K, C, j, K, C) + beta[:, None] * load_columns(own + C * K, K, C, j, K, C)
        store_columns(own + C * K, p, K, C, j, K, C)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["problems", "max_steps", "T", "N"])
def gradient_kernel(
    rhs,  # [B, T, H, K]
    out,  # [B, T, H, K] float32
    steps,  # [B, N, H] int32
    key,
    input_gate,
    high,
    low,
    gram,  # [P, 2, K, K] float16, as in `tiles.load_state`
    gram_unit,  # [P] float32
    scale,  # [G, K] float32
    marks,  # [P, R] int32, read if MARKED: 1 for problems to solve
    vectors,  # [programs, 4 C K + 2 C C] float32
    problems,
    limit,
    max_steps,
    T,
    G,
    R,
    N,
    K,
    MARKED: tl.constexpr,
    DOT: tl.constexpr,
    REFINEMENTS: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Each program loops over problems and query heads, with its own memory for x, p, r and A p.

    It works on tiles of BI columns, so that registers hold one tile whatever the key size.
    """
    programs = tl.num_programs(0)
    solution = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + 2 * C * C)
    direction = solution + C * K
    residual = solution + 2 * C * K
    image = solution + 3 * C * K
    memory = solution + 4 * C * K
    k = tl.arange(0, BK)
    for place in range(tl.program_id(0), problems * R, programs):
        p = (place // R).to(tl.int64)
        wanted = 1
        if MARKED:
            wanted = tl.load(marks + place)
        if wanted != 0:
            b, g, first, left = locate(p, T, G, N, C)
            head = g * R + place % R
            root = scale + g * K
            keys = key + ((b * T + first) * G + g) * K
            c, d = load_sums(high, low, p, C)
            before = factor(c + d, FLOOR)
            allowed = limit / tl.max(tl.load(root + k, mask=k < K, other=0.0), 0)
            largest, norm = measure_rows(rhs, root, b, first, head, G * R, K, T, C, BI)
            rr = tl.zeros([C], tl.float32)
            tl.debug_barrier()
            store_decay(memory + C * C, high, low, input_gate, p, T, G, N, FLOOR, C, BI)
            for begin in range(0, K, BI):
                j = begin + tl.arange(0, BI)
                r = load_unit(rhs, root, largest, norm, b, first, head, G * R, j, K, T, C)
                store_columns(solution, tl.zeros([C, BI], tl.float32), K, C, j, K, C)
                store_columns(direction, r, K, C, j, K, C)
                store_columns(residual, r, K, C, j, K, C)
                rr += tl.sum(r * r, 1)
            tl.debug_barrier()
            live = norm > 0.0
            taken = tl.zeros([C], tl.int32)
            last = tl.full([C], 1e30, tl.float32)
            attempt = 0
            while (attempt <= REFINEMENTS) & (tl.max(live.to(tl.int32), 0) > 0):
                while tl.max(live.to(tl.int32), 0) > 0:
                    score(direction, keys, G * K, left, root, memory, K, DOT, C, BI)
                    curvature = tl.zeros([C], tl.float32)
                    for begin in range(0, K, BI):
                        j = begin + tl.arange(0, BI)
                        product = multiply_system(
                            direction, gram, gram_unit, p, before, keys, G * K, left, root, memory, j, K, DOT, C, BI
                        )
                        store_columns(image, product, K, C, j, K, C)
                        curvature += tl.sum(product * load_columns(direction, K, C, j, K, C), 1)
                    tl.debug_barrier()
                    # A residual far below any tolerance is done, and its square would underflow.
                    live = live & (curvature > 0.0) & (rr > 1e-32) & (taken < max_steps)
                    alpha = tl.where(live, rr / tl.where(live, curvature, 1.0), 0.0)
                    new, size = advance(solution, root, alpha, K, C, BI)
                    new = tl.where(live, new, rr)
                    beta = tl.where(live, new / tl.where(live, rr, 1.0), 0.0)
                    turn(solution, beta, K, C, BI)
                    taken += live.to(tl.int32)
                    rr = new
                    # This residual norm certifies the tolerance; the factor 0.75 leaves room for drift.
                    live = live & (tl.sqrt(rr) > 0.75 * allowed * tl.sqrt(size))
                # The recursive residual drifts from the true one: compute that, and restart if it fails the test.
                score(solution, keys, G * K, left, root, memory, K, DOT, C, BI)
                rr = tl.zeros([C], tl.float32)
                size = tl.zeros([C], tl.float32)
                for begin in range(0, K, BI):
                    j = begin + tl.arange(0, BI)
                    r = load_unit(rhs, root, largest, norm, b, first, head, G * R, j, K, T, C)
                    r -= multiply_system(
                        solution, gram, gram_unit, p, before, keys, G * K, left, root, memory, j, K, DOT, C, BI
                    )
                    store_columns(direction, r, K, C, j, K, C)
                    store_columns(residual, r, K, C, j, K, C)
                    rr += tl.sum(r * r, 1)
                    x = load_columns(solution, K, C, j, K, C)
                    x *= tl.load(root + j, mask=j < K, other=0.0)[None, :]
                    size += tl.sum(x * x, 1)
                tl.debug_barrier()
                live = (tl.sqrt(rr) > allowed * tl.sqrt(size)) & (tl.sqrt(rr) < 0.5 * last) & (taken < max_steps)
                live = live & (norm > 0.0)
                last = tl.sqrt(rr)
                attempt += 1
            for begin in range(0, K, BI):
                j = begin + tl.arange(0, BI)
                x = load_columns(solution, K, C, j, K, C)
                store_rows(out, x, root, largest, norm, b, first, head, G * R, j, K, T, C)
            tl.store(steps + (b * N + p % N) * (G * R) + head, tl.max(taken, 0))

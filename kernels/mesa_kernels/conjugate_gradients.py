"""Solve by conjugate gradients (Hestenes and Stiefel 1952): for memories too short for the shared factor.

The guards are relative and every right-hand side has unit norm, so that the solution is linear in it over the whole
range of float32; the stopping rule bounds the error of x (docs/mathematics.md).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_unit, multiply_system, store_rows
from .tiles import load_block, locate, store_block

REFINEMENTS = 4
"""Restarts from a recomputed residual before a system counts as stuck at the limit of float32."""


@triton.jit
def allow(solution, scale, g, limit, K, C: tl.constexpr, BK: tl.constexpr):
    """Give the residual norm `[C]` that certifies the tolerance at the solution in memory."""
    k = tl.arange(0, BK)
    root = tl.load(scale + g * K + k, mask=k < K, other=0.0)
    x = load_block(solution, K, C, BK) * root[None, :]
    return tl.sqrt(tl.sum(x * x, 1)) * (limit / tl.max(root, 0))


@triton.jit
def gradient_kernel(
    rhs,  # [B, T, H, K]
    out,  # [B, T, H, K] float32
    steps,  # [B, N, H] int32
    key,
    input_gate,
    high,
    low,
    gram,
    scale,
    plan,
    vectors,  # [programs, 4 C K + C C] float32
    problems,
    limit,
    max_steps,
    T,
    G,
    R,
    N,
    K,
    DOT: tl.constexpr,
    REFINEMENTS: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Programs go through problems and query heads in turn, each with memory of its own for x, p and r."""
    programs = tl.num_programs(0)
    solution = vectors + tl.program_id(0).to(tl.int64) * (4 * C * K + C * C)
    direction = solution + C * K
    residual = solution + 2 * C * K
    memory = solution + 4 * C * K
    for place in range(tl.program_id(0), problems * R, programs):
        p = (place // R).to(tl.int64)
        if tl.load(plan + 4 * p) == 0:
            b, g, first, _left = locate(p, T, G, N, C)
            head = g * R + place % R
            r, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
            store_block(solution, tl.zeros([C, BK], tl.float32), K, C, BK)
            live = norm > 0.0
            taken = tl.zeros([C], tl.int32)
            last = tl.full([C], 1e30, tl.float32)
            attempt = 0
            while (attempt <= REFINEMENTS) & (tl.max(live.to(tl.int32), 0) > 0):
                store_block(direction, r, K, C, BK)
                store_block(residual, r, K, C, BK)
                rr = tl.sum(r * r, 1)
                while tl.max(live.to(tl.int32), 0) > 0:
                    product = multiply_system(
                        direction, memory, key, input_gate, high, low, gram, scale, p, T, G, N, K, DOT, FLOOR, C, BK, BI
                    )
                    v = load_block(direction, K, C, BK)
                    curvature = tl.sum(v * product, 1)
                    # Far below any tolerance a row has nothing left to gain and its squares would underflow.
                    live = live & (curvature > 0.0) & (rr > 1e-32) & (taken < max_steps)
                    alpha = tl.where(live, rr / tl.where(live, curvature, 1.0), 0.0)
                    store_block(solution, load_block(solution, K, C, BK) + alpha[:, None] * v, K, C, BK)
                    r = load_block(residual, K, C, BK) - alpha[:, None] * product
                    store_block(residual, r, K, C, BK)
                    new = tl.where(live, tl.sum(r * r, 1), rr)
                    beta = tl.where(live, new / tl.where(live, rr, 1.0), 0.0)
                    store_block(direction, r + beta[:, None] * v, K, C, BK)
                    taken += live.to(tl.int32)
                    rr = new
                    # |x| <= |b| here, so a row with a residual above the limit itself cannot be done.
                    if tl.max(tl.where(live, rr, 0.0), 0) <= limit * limit:
                        live = live & (tl.sqrt(rr) > 0.75 * allow(solution, scale, g, limit, K, C, BK))
                # The recurrence's residual drifts from the true one: look, and begin anew where that does not pass.
                product = multiply_system(
                    solution, memory, key, input_gate, high, low, gram, scale, p, T, G, N, K, DOT, FLOOR, C, BK, BI
                )
                r, largest, norm = load_unit(rhs, scale, b, first, g, head, G * R, K, T, C, BK)
                r -= product
                size = tl.sqrt(tl.sum(r * r, 1))
                live = (size > allow(solution, scale, g, limit, K, C, BK)) & (size < 0.5 * last) & (taken < max_steps)
                live = live & (norm > 0.0)
                last = size
                attempt += 1
            x = load_block(solution, K, C, BK)
            store_rows(out, x, scale, largest, norm, b, first, g, head, G * R, K, T, C, BK)
            tl.store(steps + (b * N + p % N) * (G * R) + head, tl.max(taken, 0))

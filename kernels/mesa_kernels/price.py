"""Choose how each problem is solved; everything stays on the device, so that no pass waits for the host.

The rule is that of docs/solver.md: products of the shared factor follow from the gates, steps of conjugate gradients
from a bound on the largest eigenvalue, and the cheaper way is taken.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .tiles import factor, load_decay, load_rows, load_sums, locate

GRADIENTS, SERIES, HALF = 0, 1, 2
"""Ways: conjugate gradients; the series of the shared factor in float32; the same with float16 operands, corrected by
true residuals in float32."""
PLAN = 4
"""Numbers in a problem's plan: its way, products of the first pass, products of each later pass, passes."""

FACTOR_PRICE = 4.0
STEP_PRICE = 1.6
ROUNDING = 3.0
CORRECTION = 3e-2
SLACK = 0.95
"""As in the PyTorch back end, where each is explained."""
HALF_GAIN = 5e-3
"""What a pass with float16 operands makes of an error: they keep 11 bits, and the row's norm is dominated by the
directions of small eigenvalues, where P is near 1."""
HALF_EIGENVALUE = 128.0
"""Largest eigenvalue up to which float16 operands are used: in its direction P is 1/128, known to 2^-11 only, so that a
pass still makes a sixteenth of the error there."""


def count_passes(tolerance: float) -> int:
    """Count the passes with float16 operands that reach a tolerance; the host knows it, so each is a launch."""
    return max(1, math.ceil(math.log(SLACK * tolerance) / math.log(HALF_GAIN)))


@triton.jit
def count_products(reach, tolerance):
    """Count the products with P after which the error bound is at most `tolerance`; one million if none suffice."""
    e = tl.exp(-0.5 * reach)
    digits = -tl.log(tl.maximum((1.0 - e) / (1.0 + e), 1e-30))
    wanted = tl.log(2.0 / tolerance)
    return tl.minimum(tl.maximum(tl.ceil(wanted / tl.maximum(digits, 1e-5 * wanted + 1e-9)), 1.0), 1e6)


@triton.jit
def bound_eigenvalues(
    key, input_gate, high, low, gram, scale, p, T, G, N, K, FLOOR: tl.constexpr, C: tl.constexpr, BI: tl.constexpr
):
    """Bound the eigenvalues of the scaled H_t + 1 over the tokens of a problem from above."""
    b, g, first, _left = locate(p, T, G, N, C)
    size = tl.zeros([C], tl.float32)
    whole = tl.zeros([BI], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        row = tl.load(scale + g * K + i, mask=i < K, other=0.0)
        k = load_rows(key, b, first, g, G, K, i, T, C) * row[None, :]
        size += tl.sum(k * k, 1)
        for next in range(0, K, BI):
            j = next + tl.arange(0, BI)
            column = tl.load(scale + g * K + j, mask=j < K, other=0.0)
            inside = (i < K)[:, None] & (j < K)[None, :]
            h = tl.load(gram + p * K * K + i[:, None] * K + j[None, :], mask=inside, other=0.0)
            h *= row[:, None] * column[None, :]
            whole += tl.sum(h * h, 1)
    decay = load_decay(high, low, input_gate, p, tl.arange(0, C), T, G, N, FLOOR, C)
    inside = tl.max(tl.sum(decay * size[None, :], 1), 0)
    c, d = load_sums(high, low, p, C)
    return 1.0 + inside + tl.max(factor(c + d, FLOOR), 0) * tl.sqrt(tl.sum(whole, 0))


@triton.jit
def price_kernel(
    key,  # [B, T, G, K]
    input_gate,  # [B, T, G]
    high,
    low,
    reach,  # [P]
    gram,  # [P, K, K] float32
    scale,  # [G, K] float32: 1 / sqrt(ridge)
    limit,  # [G] float32: the tolerance in the scaled norm
    carried,  # [P, K, K] float32, read where the factors are there already
    plan,  # [P, PLAN] int32
    tolerance,
    max_steps,
    passes_of_half,
    T,
    G,
    R,
    N,
    K,
    METHOD: tl.constexpr,  # "auto", "shared" or "cg"
    REUSED: tl.constexpr,
    MAY_HALVE: tl.constexpr,
    FACTOR_PRICE: tl.constexpr,
    STEP_PRICE: tl.constexpr,
    ROUNDING: tl.constexpr,
    CORRECTION: tl.constexpr,
    HALF_GAIN: tl.constexpr,
    HALF_EIGENVALUE: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """One program a problem."""
    p = tl.program_id(0).to(tl.int64)
    g = (p // N) % G
    largest = bound_eigenvalues(key, input_gate, high, low, gram, scale, p, T, G, N, K, FLOOR, C, BI)
    distance = tl.load(reach + p)
    wanted = tl.load(limit + g)
    digits = tl.log(2.0 / wanted)
    products = count_products(distance, wanted)
    root = tl.sqrt(largest)
    steps = digits / tl.log((root + 1.0) / tl.maximum(root - 1.0, 1e-6))
    steps = tl.minimum(steps, 0.535 * digits * tl.sqrt(root))
    steps = tl.minimum(tl.maximum(tl.ceil(steps), 1.0), K)
    if METHOD == "cg":
        shared = products < 0.0
    elif METHOD == "shared":
        shared = products <= 1000.0
    else:
        shared = (products + 0.5 * FACTOR_PRICE / R <= STEP_PRICE * steps) & (
            (products <= max_steps) | (steps > max_steps)
        )
    shared = shared & (largest * 1.2e-5 < 1.0)
    if REUSED:
        broken = tl.load(carried + p * K * K)
        shared = shared & (broken == broken)
    way = tl.where(shared, 1, 0)
    degree = products
    # float32 loses digits by cancellation in the directions of large eigenvalues, twice (docs/solver.md)
    passes = tl.where(largest * largest * 1.2e-7 > ROUNDING * tolerance, 2.0, 1.0)
    later = count_products(distance, CORRECTION)
    if MAY_HALVE:
        share = tl.exp(tl.log(wanted) / passes_of_half)
        half = shared & (largest <= HALF_EIGENVALUE) & (share >= 0.5 * HALF_GAIN)
        share = count_products(distance, share)
        way = tl.where(half, 2, way)
        degree = tl.where(half, share, degree)
    degree = tl.minimum(degree, max_steps)
    tl.store(plan + 4 * p, way)
    tl.store(plan + 4 * p + 1, degree.to(tl.int32))
    tl.store(plan + 4 * p + 2, tl.minimum(later, max_steps).to(tl.int32))
    tl.store(plan + 4 * p + 3, passes.to(tl.int32))

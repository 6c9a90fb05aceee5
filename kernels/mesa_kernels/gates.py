"""Sum the log gates of every chunk, and compute the scales of its keys for the solvers and the states."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import ceil_power, factor, load_decay, load_gate, load_rows, locate, store_columns


@triton.jit(do_not_specialize=["problems", "T", "N"])
def gate_kernel(
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    log_forget,  # [B, T, G]
    input_gate,  # [B, T, G]
    scale,  # [G, K] float32: 1 / sqrt(ridge)
    high,  # [P, C] float32: the sum of log gates up to a token
    low,  # [P, C] float32: the rounding error of high
    lift,  # [P, C] float32: a power of two at least the largest entry of a scaled key
    before,  # [P, C] float32: e^{c_t}, the decay from the chunk's start to a token
    after,  # [P, C] float32: e^{c_C - c_s} beta_s, a token's weight at the chunk's end
    weights,  # [P, C, C] float32, written if WEIGHTS: e^{c_t - c_s} beta_s lift_s^2 of reader t, source s <= t
    growth,  # [2, P] float32: bounds on the growth of entries of the scaled gram and cross states in the chunk
    problems,
    T,
    G,
    N,
    K,
    V,
    WEIGHTS: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """One program per problem; gates are float64 until they are stored."""
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    log = tl.load(log_forget + (b * T + first + t) * G + g, mask=t < left, other=0.0).to(tl.float64)
    # Gates are clamped just below the floor, where their factor is already zero, so that no infinity is subtracted.
    total = tl.cumsum(tl.where(log < FLOOR, FLOOR - 1.0, log), 0)
    whole = total.to(tl.float32)
    tl.store(high + p * C + t, whole)
    tl.store(low + p * C + t, (total - whole.to(tl.float64)).to(tl.float32))
    largest = tl.zeros([C], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        row = tl.load(scale + g * K + i, mask=i < K, other=0.0)
        k = load_rows(key, b, first, g, G, K, i, T, C) * row[None, :]
        largest = tl.maximum(largest, tl.max(tl.abs(k), 1))
    tl.store(lift + p * C + t, tl.where(largest > 0.0, ceil_power(largest), 1.0))
    rest = tl.sum(tl.where(t == C - 1, total, 0.0), 0) - total
    weight = factor(rest.to(tl.float32), FLOOR) * load_gate(input_gate, b, g, first, left, T, G, t)
    tl.store(before + p * C + t, factor(whole, FLOOR))
    tl.store(after + p * C + t, weight)
    if WEIGHTS:
        tl.debug_barrier()  # so that every thread reads the sums that others stored
        square = tl.load(lift + p * C + t)
        square *= square
        decay = load_decay(high, low, input_gate, p, t, T, G, N, FLOOR, C) * square[None, :]
        store_columns(weights + p * C * C, decay, C, C, t, C, C)
    tl.store(growth + p, tl.sum(weight * largest * largest, 0))
    heaviest = tl.zeros([C], tl.float32)
    for begin in range(0, V, BI):
        v = load_rows(value, b, first, g, G, V, begin + tl.arange(0, BI), T, C)
        heaviest = tl.maximum(heaviest, tl.max(tl.abs(v), 1))
    tl.store(growth + problems + p, tl.sum(weight * largest * heaviest, 0))

"""Take right-hand sides in and give solutions out: scaled by the ridge and to unit norm, so that a solve is linear."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import apply_matrix, factor, load_decay, load_rows, load_sums, locate


@triton.jit
def load_unit(rhs, scale, b, first, g, head, heads, K, T, C: tl.constexpr, BK: tl.constexpr):
    """Load one chunk and head of rhs `[B, T, heads, K]`, scaled: unit rows, their largest entries and norms."""
    k = tl.arange(0, BK)
    rows = load_rows(rhs, b, first, head, heads, K, k, T, C)
    rows *= tl.load(scale + g * K + k, mask=k < K, other=0.0)[None, :]
    largest = tl.max(tl.abs(rows), 1)
    rows = rows / tl.where(largest > 0.0, largest, 1.0)[:, None]
    norm = tl.sqrt(tl.sum(rows * rows, 1))
    return rows / tl.where(norm > 0.0, norm, 1.0)[:, None], largest, norm


@triton.jit
def store_rows(out, rows, scale, largest, norm, b, first, g, head, heads, K, T, C: tl.constexpr, BK: tl.constexpr):
    """Undo `load_unit` and store to out `[B, T, heads, K]`, in the caller's units."""
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    rows = rows * norm[:, None] * largest[:, None] * tl.load(scale + g * K + k, mask=k < K, other=0.0)[None, :]
    place = ((b * T + first + t) * heads + head) * K
    tl.store(out + place[:, None] + k[None, :], rows, mask=(first + t < T)[:, None] & (k < K)[None, :])


@triton.jit
def multiply_system(
    rows,
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
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Multiply rows `[C, K]` in memory by their token's scaled H_t + 1: `[C, BK]`."""
    b, g, first, left = locate(p, T, G, N, C)
    c, d = load_sums(high, low, p, C)
    mask = load_decay(high, low, input_gate, p, T, G, N, FLOOR, C)
    vectors = key + ((b * T + first) * G + g) * K
    product = apply_matrix(
        rows, gram + p * K * K, vectors, G * K, left, scale + g * K, mask, factor(c + d, FLOOR), K, DOT, True, C, BK, BI
    )
    return product + load_block(rows, K, C, BK)


@triton.jit
def load_block(rows, K, C: tl.constexpr, BK: tl.constexpr):
    """Load rows `[C, K]` from memory."""
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    return tl.load(rows + t[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit
def store_block(rows, values, K, C: tl.constexpr, BK: tl.constexpr):
    """Store rows `[C, K]` where all threads of the program may read them afterwards."""
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    tl.debug_barrier()
    tl.store(rows + t[:, None] * K + k[None, :], values, mask=(k < K)[None, :])
    tl.debug_barrier()

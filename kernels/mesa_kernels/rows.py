"""Take right-hand sides in and give solutions out: scaled by the ridge and to unit norm, so that a solve is linear."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import factor, gather, load_block, load_decay, load_rows, load_sums, locate, project


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
    k = tl.arange(0, BK)
    rows = rows * norm[:, None] * largest[:, None] * tl.load(scale + g * K + k, mask=k < K, other=0.0)[None, :]
    store_tokens(out, rows, b, first, head, heads, K, T, C, BK)


@triton.jit
def store_tokens(out, rows, b, first, head, heads, K, T, C: tl.constexpr, BK: tl.constexpr):
    """Store the rows `[C, BK]` of one chunk and head to out `[B, T, heads, K]`."""
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    out += ((b * T + first) * heads + head) * K
    place = t[:, None] * (heads * K) + k[None, :]
    tl.store(out + place, rows, mask=(first + t < T)[:, None] & (k < K)[None, :])


@triton.jit
def multiply_system(
    rows,
    memory,
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
    """Multiply rows `[C, K]` in memory by their token's scaled H_t + 1: `[C, BK]`; memory: `[C, C]` to work in."""
    b, g, first, left = locate(p, T, G, N, C)
    k = tl.arange(0, BK)
    vectors = key + ((b * T + first) * G + g) * K
    scale += g * K
    product, scores = project(rows, K, gram + p * K * K, vectors, G * K, left, scale, K, DOT, True, C, BK, BI)
    c, d = load_sums(high, low, p, C)
    product *= factor(c + d, FLOOR)[:, None]
    scores *= load_decay(high, low, input_gate, p, T, G, N, FLOOR, C)
    product = gather(product, scores, memory, vectors, G * K, left, K, DOT, C, BK, BI)
    product *= tl.load(scale + k, mask=k < K, other=0.0)[None, :]
    return product + load_block(rows, K, C, BK)

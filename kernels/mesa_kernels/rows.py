"""Load right-hand sides scaled by the ridge and to unit norm, and undo that for solutions: a solve is then linear."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_rows, store_columns


@triton.jit
def load_scaled(rhs, scale, b, first, head, heads, columns, K, T, C: tl.constexpr):
    """Load columns of one chunk and head of rhs `[B, T, heads, K]`, each multiplied by its scale: `[C, columns]`."""
    rows = load_rows(rhs, b, first, head, heads, K, columns, T, C)
    return rows * tl.load(scale + columns, mask=columns < K, other=0.0)[None, :]


@triton.jit
def measure_rows(rhs, scale, b, first, head, heads, K, T, C: tl.constexpr, BI: tl.constexpr):
    """Return the largest entries `[C]` of scaled rows, and the norms `[C]` of the rows divided by them."""
    largest = tl.zeros([C], tl.float32)
    for begin in range(0, K, BI):
        rows = load_scaled(rhs, scale, b, first, head, heads, begin + tl.arange(0, BI), K, T, C)
        largest = tl.maximum(largest, tl.max(tl.abs(rows), 1))
    square = tl.zeros([C], tl.float32)
    divisor = tl.where(largest > 0.0, largest, 1.0)
    for begin in range(0, K, BI):
        rows = load_scaled(rhs, scale, b, first, head, heads, begin + tl.arange(0, BI), K, T, C)
        rows = rows / divisor[:, None]
        square += tl.sum(rows * rows, 1)
    return largest, tl.sqrt(square)


@triton.jit
def load_unit(rhs, scale, largest, norm, b, first, head, heads, columns, K, T, C: tl.constexpr):
    """Load columns of scaled rows that `measure_rows` measured, at unit norm: `[C, columns]`."""
    rows = load_scaled(rhs, scale, b, first, head, heads, columns, K, T, C)
    rows = rows / tl.where(largest > 0.0, largest, 1.0)[:, None]
    return rows / tl.where(norm > 0.0, norm, 1.0)[:, None]


@triton.jit
def store_rows(out, rows, scale, largest, norm, b, first, head, heads, columns, K, T, C: tl.constexpr):
    """Undo `load_unit` and store columns of one chunk and head to out `[B, T, heads, K]`, in the caller's units."""
    ends = tl.load(scale + columns, mask=columns < K, other=0.0)
    out += ((b * T + first) * heads + head) * K
    rows = rows * norm[:, None] * largest[:, None] * ends[None, :]
    store_columns(out, rows, heads * K, T - first, columns, K, C)

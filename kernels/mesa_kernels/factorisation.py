"""Factor what the tokens of a chunk share: N = M^-1 and the gains U = L^-1 W N (docs/solver.md).

M = g* H_0 + 1 is inverted in place by Gauss-Jordan elimination in tiles, without pivoting: M is symmetric and no pivot
of its elimination is below 1, since no eigenvalue of M is. S = 1 + W N W' is factored in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_gate, load_rows, locate


@triton.jit
def invert_tile(a, BT: tl.constexpr):
    """Invert a symmetric positive definite tile `[BT, BT]`; give the inverse, and 1 if every pivot is sound, else 0."""
    i = tl.arange(0, BT)
    sound = tl.full([], 1, tl.int32)
    for j in range(BT):
        at = i == j
        row = tl.sum(tl.where(at[:, None], a, 0.0), 0)
        column = tl.sum(tl.where(at[None, :], a, 0.0), 1)
        pivot = tl.sum(tl.where(at, row, 0.0), 0)
        sound = tl.where(pivot >= 0.5, sound, 0)
        row = tl.where(at, 1.0, row) / pivot
        rest = tl.where(at[None, :], 0.0, a) - tl.where(at, 0.0, column)[:, None] * row[None, :]
        a = tl.where(at[:, None], row[None, :], rest)
    return a, sound


@triton.jit
def invert_root(a, C: tl.constexpr):
    """Give L^-1 `[C, C]` of a symmetric positive definite tile a = L L' `[C, C]`."""
    i = tl.arange(0, C)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for j in range(C):
        at = i == j
        row = tl.sum(tl.where(at[:, None], a, 0.0), 0)
        column = tl.sum(tl.where(at[None, :], a, 0.0), 1)
        left = tl.sum(tl.where(at[:, None], inverse, 0.0), 0)
        pivot = tl.sum(tl.where(at, row, 0.0), 0)
        root = 1.0 / tl.sqrt(pivot)
        # rows below j lose their share of row j; row j itself is scaled to the row of L' and of L^-1
        share = tl.where(i > j, column / pivot, 0.0)
        a -= share[:, None] * row[None, :]
        inverse = tl.where(at[:, None], (left * root)[None, :], inverse - share[:, None] * left[None, :])
    return inverse


@triton.jit
def invert_matrix(matrix, K, DOT: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
    """Invert a symmetric positive definite matrix `[K, K]` in memory, in place; tell as 1 or 0 if it was sound."""
    t = tl.arange(0, BT)
    k = tl.arange(0, BK)
    sound = tl.full([], 1, tl.int32)
    for begin in range(0, K, BT):
        i = begin + t
        here = (i < K)[:, None] & (i < K)[None, :]
        pivot = tl.load(matrix + i[:, None] * K + i[None, :], mask=here, other=0.0)
        pivot = tl.where((i[:, None] == i[None, :]) & (i >= K)[:, None], 1.0, pivot)
        inverse, good = invert_tile(pivot, BT)
        sound = sound * good
        elsewhere = ((k < begin) | (k >= begin + BT)) & (k < K)
        across = (i < K)[:, None] & elsewhere[None, :]
        panel = tl.load(matrix + i[:, None] * K + k[None, :], mask=across, other=0.0)
        panel = tl.dot(inverse, panel, input_precision=DOT)
        tl.debug_barrier()
        tl.store(matrix + i[:, None] * K + k[None, :], panel, mask=across)
        tl.store(matrix + i[:, None] * K + i[None, :], inverse, mask=here)
        for other in range(0, K, BT):
            if other != begin:
                o = other + t
                side = (o < K)[:, None] & (i < K)[None, :]
                rest = (o < K)[:, None] & elsewhere[None, :]
                block = tl.load(matrix + o[:, None] * K + i[None, :], mask=side, other=0.0)
                row = tl.load(matrix + o[:, None] * K + k[None, :], mask=rest, other=0.0)
                row = tl.dot(-block, panel, row, input_precision=DOT)
                column = tl.dot(-block, inverse, input_precision=DOT)
                tl.debug_barrier()
                tl.store(matrix + o[:, None] * K + k[None, :], row, mask=rest)
                tl.store(matrix + o[:, None] * K + i[None, :], column, mask=side)
        tl.debug_barrier()
    return sound


@triton.jit
def factor_kernel(
    key,  # [B, T, G, K]
    input_gate,  # [B, T, G]
    log_ratio,  # [P, C]
    stretch,  # [P, C]
    start,  # [P]
    gram,  # [P, K, K] float32
    scale,  # [G, K]
    plan,  # [P, 4]
    carried,  # [P, K, K] float32: N, its first entry NaN where M is not positive definite in this arithmetic
    gains,  # [P, C, K] float32: U
    T,
    G,
    N,
    K,
    DOT: tl.constexpr,
    C: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    """One program a problem; problems planned for conjugate gradients are left alone."""
    p = tl.program_id(0).to(tl.int64)
    if tl.load(plan + 4 * p) == 0:
        return
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    inside = (k < K)[None, :]
    columns = tl.load(scale + g * K + k, mask=k < K, other=0.0)
    matrix = carried + p * K * K
    decay = tl.exp(tl.load(start + p))
    for begin in range(0, K, BT):
        i = begin + tl.arange(0, BT)
        row = tl.load(scale + g * K + i, mask=i < K, other=0.0)
        place = i[:, None] * K + k[None, :]
        h = tl.load(gram + p * K * K + place, mask=(i < K)[:, None] & inside, other=0.0)
        m = decay * row[:, None] * columns[None, :] * h + tl.where(i[:, None] == k[None, :], 1.0, 0.0)
        tl.store(matrix + place, m, mask=(i < K)[:, None] & inside)
    tl.debug_barrier()
    if invert_matrix(matrix, K, DOT, BT, BK) == 0:
        tl.store(matrix, float("nan"))
        tl.store(plan + 4 * p, 0)
        return

    number = tl.load(stretch + p * C + t)
    beta = load_gate(input_gate, b, g, first, left, T, G, C)
    weight = tl.sqrt(beta * tl.exp(tl.load(log_ratio + p * C + t)))
    half = tl.zeros([C, BK], tl.float32)
    for begin in range(0, K, BT):
        i = begin + tl.arange(0, BT)
        row = tl.load(scale + g * K + i, mask=i < K, other=0.0)
        w = load_rows(key, b, first, g, G, K, i, T, C) * row[None, :] * weight[:, None]
        n = tl.load(matrix + i[:, None] * K + k[None, :], mask=(i < K)[:, None] & inside, other=0.0)
        half = tl.dot(w, n, half, input_precision=DOT)
    whole = load_rows(key, b, first, g, G, K, k, T, C) * columns[None, :] * weight[:, None]
    half = tl.where((number == 0)[:, None], half, whole)  # after a restart M is the identity
    rows = gains + p * C * K
    tl.store(rows + t[:, None] * K + k[None, :], half, mask=inside)
    tl.debug_barrier()
    inner = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BT):
        i = begin + tl.arange(0, BT)
        row = tl.load(scale + g * K + i, mask=i < K, other=0.0)
        w = load_rows(key, b, first, g, G, K, i, T, C) * row[None, :] * weight[:, None]
        h = tl.load(rows + t[:, None] * K + i[None, :], mask=(i < K)[None, :], other=0.0)
        inner = tl.dot(h, tl.trans(w), inner, input_precision=DOT)
    inner = tl.where(number[:, None] == number[None, :], inner, 0.0)
    inner += tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    small = invert_root(inner, C)
    half = tl.load(rows + t[:, None] * K + k[None, :], mask=inside, other=0.0)
    half = tl.dot(small, half, input_precision=DOT)
    tl.debug_barrier()
    tl.store(rows + t[:, None] * K + k[None, :], half, mask=inside)

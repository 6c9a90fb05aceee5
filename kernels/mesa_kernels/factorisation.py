"""Factor what the tokens of a chunk share: N = M^-1 and the gains U = L^-1 W N (docs/solver.md).

M = g* H_0 + 1 is inverted in place by Gauss-Jordan elimination in tiles, without pivoting: M is symmetric and no pivot
of its elimination is below 1, since no eigenvalue of M is. S = 1 + W N W' is factored in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_columns, load_gate, load_rows, locate, store_columns


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
def load_elsewhere(rows, K, left, columns, begin, BT: tl.constexpr):
    """Load columns of BT rows in memory, but 0 for those of the pivot's tile, which begins at `begin`."""
    t = tl.arange(0, BT)
    here = (columns >= begin) & (columns < begin + BT)
    inside = (t < left)[:, None] & (~here & (columns < K))[None, :]
    return tl.load(rows + t[:, None] * K + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_elsewhere(rows, values, K, left, columns, begin, BT: tl.constexpr):
    """Store what `load_elsewhere` loads."""
    t = tl.arange(0, BT)
    here = (columns >= begin) & (columns < begin + BT)
    inside = (t < left)[:, None] & (~here & (columns < K))[None, :]
    tl.store(rows + t[:, None] * K + columns[None, :], values, mask=inside)


@triton.jit
def invert_matrix(matrix, K, DOT: tl.constexpr, BT: tl.constexpr, BJ: tl.constexpr):
    """Invert a symmetric positive definite matrix `[K, K]` in memory, in place; tell as 1 or 0 if it was sound.

    Pivots are tiles of BT, rows are worked on by tiles of BJ columns.
    """
    t = tl.arange(0, BT)
    sound = tl.full([], 1, tl.int32)
    for begin in range(0, K, BT):
        i = begin + t
        row = matrix + begin * K
        pivot = load_columns(row, K, K - begin, i, K, BT)
        pivot = tl.where((i[:, None] == i[None, :]) & (i >= K)[:, None], 1.0, pivot)
        inverse, good = invert_tile(pivot, BT)
        sound = sound * good
        tl.debug_barrier()
        for next in range(0, K, BJ):
            j = next + tl.arange(0, BJ)
            panel = tl.dot(inverse, load_elsewhere(row, K, K - begin, j, begin, BT), input_precision=DOT)
            tl.debug_barrier()
            store_elsewhere(row, panel, K, K - begin, j, begin, BT)
        store_columns(row, inverse, K, K - begin, i, K, BT)
        tl.debug_barrier()
        for other in range(0, K, BT):
            if other != begin:
                rest = matrix + other * K
                block = -load_columns(rest, K, K - other, i, K, BT)
                tl.debug_barrier()
                for next in range(0, K, BJ):
                    j = next + tl.arange(0, BJ)
                    panel = load_elsewhere(row, K, K - begin, j, begin, BT)
                    update = load_elsewhere(rest, K, K - other, j, begin, BT)
                    update = tl.dot(block, panel, update, input_precision=DOT)
                    store_elsewhere(rest, update, K, K - other, j, begin, BT)
                column = tl.dot(block, inverse, input_precision=DOT)
                store_columns(rest, column, K, K - other, i, K, BT)
        tl.debug_barrier()
    return sound


@triton.jit
def load_keys(key, scale, weight, b, first, g, columns, T, G, K, C: tl.constexpr):
    """Load columns of W, a chunk's keys, each scaled and weighted as its token: `[C, columns]`."""
    row = tl.load(scale + columns, mask=columns < K, other=0.0)
    return load_rows(key, b, first, g, G, K, columns, T, C) * row[None, :] * weight[:, None]


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
    BJ: tl.constexpr,
):
    """One program a problem; problems planned for conjugate gradients are left alone."""
    p = tl.program_id(0).to(tl.int64)
    if tl.load(plan + 4 * p) == 0:
        return
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    scale += g * K
    matrix = carried + p * K * K
    decay = tl.exp(tl.load(start + p))
    for begin in range(0, K, BT):
        i = begin + tl.arange(0, BT)
        row = tl.load(scale + i, mask=i < K, other=0.0)
        for next in range(0, K, BJ):
            j = next + tl.arange(0, BJ)
            column = tl.load(scale + j, mask=j < K, other=0.0)
            h = load_columns(gram + p * K * K + begin * K, K, K - begin, j, K, BT)
            m = decay * row[:, None] * column[None, :] * h + tl.where(i[:, None] == j[None, :], 1.0, 0.0)
            store_columns(matrix + begin * K, m, K, K - begin, j, K, BT)
    tl.debug_barrier()
    if invert_matrix(matrix, K, DOT, BT, BJ) == 0:
        tl.store(matrix, float("nan"))
        tl.store(plan + 4 * p, 0)
        return

    number = tl.load(stretch + p * C + t)
    beta = load_gate(input_gate, b, g, first, left, T, G, t)
    weight = tl.sqrt(beta * tl.exp(tl.load(log_ratio + p * C + t)))
    rows = gains + p * C * K
    for next in range(0, K, BJ):
        j = next + tl.arange(0, BJ)
        half = tl.zeros([C, BJ], tl.float32)
        for begin in range(0, K, BT):
            i = begin + tl.arange(0, BT)
            w = load_keys(key, scale, weight, b, first, g, i, T, G, K, C)
            n = load_columns(matrix + begin * K, K, K - begin, j, K, BT)
            half = tl.dot(w, n, half, input_precision=DOT)
        whole = load_keys(key, scale, weight, b, first, g, j, T, G, K, C)
        half = tl.where((number == 0)[:, None], half, whole)  # after a restart M is the identity
        store_columns(rows, half, K, C, j, K, C)
    tl.debug_barrier()
    inner = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BT):
        i = begin + tl.arange(0, BT)
        w = load_keys(key, scale, weight, b, first, g, i, T, G, K, C)
        inner = tl.dot(load_columns(rows, K, C, i, K, C), tl.trans(w), inner, input_precision=DOT)
    inner = tl.where(number[:, None] == number[None, :], inner, 0.0)
    inner += tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    small = invert_root(inner, C)
    for next in range(0, K, BJ):
        j = next + tl.arange(0, BJ)
        half = tl.dot(small, load_columns(rows, K, C, j, K, C), input_precision=DOT)
        tl.debug_barrier()
        store_columns(rows, half, K, C, j, K, C)

"""Share the pieces of all kernels: where a problem lies, decay between tokens, and products with a chunk's matrices.

One *problem* is one chunk of C = 64 tokens of one key head of one sequence; problems are numbered
p = (b * G + g) * N + n. Inside a chunk the state after token t is, with c_t the sum of the log gates up to t,

    S_t = e^{c_t} S_0 + sum_{s <= t} e^{c_t - c_s} beta_s (token s's contribution).

The sums c are float64, kept as two float32 numbers `high` and `low`: a chunk may hold many gates of -60, whose size
would otherwise eat the digits of the mild ones beside them.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 64
"""Tokens in a chunk."""
FLOOR = -60.0
"""Log decay below which a factor counts as zero: far under what float32 resolves beside a token's own weight."""


@triton.jit
def locate(p, T, G, N, C: tl.constexpr):
    """Give batch row (64 bits), key head, first token and tokens left (32 bits) of problem p."""
    n = (p % N).to(tl.int32)
    g = ((p // N) % G).to(tl.int32)
    b = p // (N * G)
    return b, g, n * C, T - n * C


@triton.jit
def load_rows(x, b, first, head, heads, width, columns, T, C: tl.constexpr):
    """Load columns of the rows of one chunk and head of x `[B, T, heads, width]`, float32 `[C, columns]`."""
    t = tl.arange(0, C)
    x += ((b * T + first) * heads + head) * width
    place = t[:, None] * (heads * width) + columns[None, :]  # 32 bits an offset: half the registers of 64
    inside = (first + t < T)[:, None] & (columns < width)[None, :]
    return tl.load(x + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def factor(log, FLOOR: tl.constexpr):
    """Turn a log decay (at most 0) into a factor, exactly 0 below the floor."""
    return tl.where(log < FLOOR, 0.0, tl.exp(tl.minimum(tl.maximum(log, FLOOR), 0.0)))


@triton.jit
def load_sums(high, low, p, C: tl.constexpr):
    """Load the sums of log gates `[C]` of a problem."""
    t = tl.arange(0, C)
    return tl.load(high + p * C + t), tl.load(low + p * C + t)


@triton.jit
def load_last(high, low, p, C: tl.constexpr):
    """Load the sum of all log gates of a problem."""
    return tl.load(high + p * C + C - 1), tl.load(low + p * C + C - 1)


@triton.jit
def decay_between(high, low, p, FLOOR: tl.constexpr, C: tl.constexpr):
    """Give e^{c_t - c_s} `[C, C]` for s <= t (reader t, source s), else 0."""
    t = tl.arange(0, C)
    c, d = load_sums(high, low, p, C)
    between = factor((c[:, None] - c[None, :]) + (d[:, None] - d[None, :]), FLOOR)
    return tl.where(t[:, None] >= t[None, :], between, 0.0)


@triton.jit
def load_gate(input_gate, b, g, first, left, T, G, C: tl.constexpr):
    """Load beta `[C]` of a problem, 0 past the end."""
    t = tl.arange(0, C)
    return tl.load(input_gate + (b * T + first + t) * G + g, mask=t < left, other=0.0).to(tl.float32)


@triton.jit
def load_decay(high, low, input_gate, p, T, G, N, FLOOR: tl.constexpr, C: tl.constexpr):
    """Give `decay_between` times beta_s."""
    b, g, first, left = locate(p, T, G, N, C)
    return decay_between(high, low, p, FLOOR, C) * load_gate(input_gate, b, g, first, left, T, G, C)[None, :]


@triton.jit
def project(
    rows,
    row_stride,
    matrix,
    vectors,
    stride,
    left,
    scale,
    K,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Multiply rows R `[C, K]` in memory by a matrix A and by vectors X: R A `[C, BK]` and R X' `[C, C]`.

    rows R, row t at t * row_stride, and vectors X, row s at s * stride, of which `left` exist; matrix A `[K, K]`
    float32. SCALED: R is first multiplied by scale `[K]`, column by column. Both products run over slices of BI columns
    of R, so that no operand is held whole.
    """
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    product = tl.zeros([C, BK], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        inside = (t < left)[:, None] & (i < K)[None, :]
        v = tl.load(rows + t[:, None] * row_stride + i[None, :], mask=inside, other=0.0)
        if SCALED:
            v *= tl.load(scale + i, mask=i < K, other=0.0)[None, :]
        a = tl.load(matrix + i[:, None] * K + k[None, :], mask=(i < K)[:, None] & (k < K)[None, :], other=0.0)
        inside = (t < left)[None, :] & (i < K)[:, None]
        x = tl.load(vectors + t[None, :] * stride + i[:, None], mask=inside, other=0.0).to(tl.float32)
        product = tl.dot(v, a, product, input_precision=DOT)
        scores = tl.dot(v, x, scores, input_precision=DOT)
    return product, scores


@triton.jit
def gather(
    product,
    scores,
    memory,
    vectors,
    stride,
    left,
    K,
    DOT: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Add scores `[C, C]` times vectors X `[C, K]` to a product `[C, BK]`, in slices of BI vectors.

    The scores go through `memory` `[C, C]`: a product whose operand is another's result would tie all warps to the rows
    of the tile, and more than four of them would hold it twice.
    """
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    store_block(memory, scores, C, C, C)
    added = tl.zeros([C, BK], tl.float32)
    for begin in range(0, C, BI):
        s = begin + tl.arange(0, BI)
        weight = tl.load(memory + t[:, None] * C + s[None, :])
        inside = (s < left)[:, None] & (k < K)[None, :]
        x = tl.load(vectors + s[:, None] * stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        added = tl.dot(weight, x, added, input_precision=DOT)
    return product + added


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

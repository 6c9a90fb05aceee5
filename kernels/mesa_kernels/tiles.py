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
    """Give batch row, key head, first token and tokens left of problem p."""
    n = p % N
    g = (p // N) % G
    b = p // (N * G)
    return b, g, n * C, T - n * C


@triton.jit
def load_rows(x, b, first, head, heads, width, columns, T, C: tl.constexpr):
    """Load columns of the rows of one chunk and head of x `[B, T, heads, width]`, float32 `[C, columns]`."""
    t = tl.arange(0, C)
    place = ((b * T + first + t).to(tl.int64) * heads + head) * width
    inside = (first + t < T)[:, None] & (columns < width)[None, :]
    return tl.load(x + place[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)


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
def apply_matrix(
    rows,
    matrix,
    vectors,
    vectors_stride,
    left,
    scale,
    mask,
    carry,
    K,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
):
    """Multiply rows R `[C, K]` in memory: carry * (R A) + ((R X') * mask) X, as `[C, BK]`.

    matrix A `[K, K]` (symmetric) float32; vectors X, row s at s * vectors_stride, of which `left` exist; mask `[C, C]`;
    carry `[C]`. SCALED: A and X are those of the unscaled problem, scale `[K]` = 1 / sqrt(ridge), and the scaled
    product scale * ((scale * R) ...) is returned. Products run over slices of BI of the inner size, so that no operand
    need be held whole.
    """
    t = tl.arange(0, C)
    k = tl.arange(0, BK)
    product = tl.zeros([C, BK], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        v = tl.load(rows + t[:, None] * K + i[None, :], mask=(i < K)[None, :], other=0.0)
        if SCALED:
            v *= tl.load(scale + i, mask=i < K, other=0.0)[None, :]
        a = tl.load(matrix + i[:, None] * K + k[None, :], mask=(i < K)[:, None] & (k < K)[None, :], other=0.0)
        x = tl.load(
            vectors + t[None, :].to(tl.int64) * vectors_stride + i[:, None],
            mask=(t < left)[None, :] & (i < K)[:, None],
            other=0.0,
        ).to(tl.float32)
        product = tl.dot(v, a, product, input_precision=DOT)
        scores = tl.dot(v, x, scores, input_precision=DOT)
    product *= carry[:, None]
    x = tl.load(
        vectors + t[:, None].to(tl.int64) * vectors_stride + k[None, :],
        mask=(t < left)[:, None] & (k < K)[None, :],
        other=0.0,
    ).to(tl.float32)
    product = tl.dot(scores * mask, x, product, input_precision=DOT)
    if SCALED:
        product *= tl.load(scale + k, mask=k < K, other=0.0)[None, :]
    return product

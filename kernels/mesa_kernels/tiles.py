"""Building blocks of all kernels: locating problems, decay between tokens, and products with a chunk's matrices.

One *problem* is one chunk of C = 64 tokens of one key head of one sequence; problems are numbered
p = (b * G + g) * N + n. Inside a chunk the state after token t is, with c_t the sum of the log gates up to t,

    S_t = e^{c_t} S_0 + sum_{s <= t} e^{c_t - c_s} beta_s (token s's contribution).

The sums c are float64, stored as two float32 numbers `high` and `low`: many gates of -60 in a chunk would otherwise
cost the small ones their digits.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 64
"""Tokens in a chunk."""
SIDE = 64
"""Rows and columns of the blocks of a state's gradient that each have their own unit."""
NARROWEST = 64
"""Columns of the narrowest tile: Triton 3.6 multiplies 16-bit right operands of shorter rows wrongly on sm_90."""
FLOOR = -60.0
"""Log decay below which a factor counts as zero: far below what float32 can add to a token's own weight."""


@triton.jit
def locate(p, T, G, N, C: tl.constexpr):
    """Return batch row (64 bits), key head, first token and remaining tokens (32 bits) of problem p."""
    n = (p % N).to(tl.int32)
    g = ((p // N) % G).to(tl.int32)
    b = p // (N * G)
    return b, g, n * C, T - n * C


@triton.jit
def load_columns(rows, stride, left, columns, width, C: tl.constexpr):
    """Load columns of rows in memory, row t at t * stride, of which `left` exist: float32 `[C, columns]`."""
    t = tl.arange(0, C)
    place = t[:, None] * stride + columns[None, :]  # 32 bits an offset: half the registers of 64
    inside = (t < left)[:, None] & (columns < width)[None, :]
    return tl.load(rows + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_columns(rows, values, stride, left, columns, width, C: tl.constexpr):
    """Store what `load_columns` loads."""
    t = tl.arange(0, C)
    place = t[:, None] * stride + columns[None, :]
    tl.store(rows + place, values, mask=(t < left)[:, None] & (columns < width)[None, :])


@triton.jit
def load_rows(x, b, first, head, heads, width, columns, T, C: tl.constexpr):
    """Load columns of the rows of one chunk and head of x `[B, T, heads, width]`, float32 `[C, columns]`."""
    x += ((b * T + first) * heads + head) * width
    return load_columns(x, heads * width, T - first, columns, width, C)


@triton.jit
def factor(log, FLOOR: tl.constexpr):
    """Turn a log decay (at most 0) into a factor, exactly 0 below the floor."""
    return tl.where(log < FLOOR, 0.0, tl.exp(tl.minimum(log, 0.0)))


@triton.jit
def ceil_power(x):
    """Return the least power of two that is at least x, exactly; x positive, normal and finite."""
    bits = x.to(tl.int32, bitcast=True)
    up = tl.where((bits & 0x7FFFFF) != 0, 0x800000, 0)
    return ((bits & 0x7F800000) + up).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Return float16 halves with the sum x to about 22 bits."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def load_state(planes, unit, p, rows, columns, K, D):
    """Load a float32 tile of a scaled state `[P, 2, K, D]`, stored as two float16 planes over a power of two."""
    place = rows[:, None] * D + columns[None, :]
    inside = (rows < K)[:, None] & (columns < D)[None, :]
    planes += p * 2 * K * D
    high = tl.load(planes + place, mask=inside, other=0.0).to(tl.float32)
    return (high + tl.load(planes + K * D + place, mask=inside, other=0.0).to(tl.float32)) * tl.load(unit + p)


@triton.jit
def load_plain_state(planes, unit, root, p, rows, columns, K, D):
    """Load a tile of the cross state and undo its scaling; root `[K]` is sqrt(ridge)."""
    tile = load_state(planes, unit, p, rows, columns, K, D)
    return tile * tl.load(root + rows, mask=rows < K, other=0.0)[:, None]


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
def decay_from(high, low, p, s, FLOOR: tl.constexpr, C: tl.constexpr):
    """Return e^{c_t - c_s} `[C, sources]` for sources s <= t (reader t), else 0."""
    t = tl.arange(0, C)
    c, d = load_sums(high, low, p, C)
    high += p * C
    low += p * C
    between = (c[:, None] - tl.load(high + s)[None, :]) + (d[:, None] - tl.load(low + s)[None, :])
    return factor(tl.where(t[:, None] >= s[None, :], between, FLOOR - 1.0), FLOOR)


@triton.jit
def load_gate(input_gate, b, g, first, left, T, G, t):
    """Load beta of tokens t of a problem, 0 past the end."""
    return tl.load(input_gate + (b * T + first + t) * G + g, mask=t < left, other=0.0).to(tl.float32)


@triton.jit
def load_decay(high, low, input_gate, p, s, T, G, N, FLOOR: tl.constexpr, C: tl.constexpr):
    """Return `decay_from` sources s times beta_s."""
    b, g, first, left = locate(p, T, G, N, C)
    return decay_from(high, low, p, s, FLOOR, C) * load_gate(input_gate, b, g, first, left, T, G, s)[None, :]


@triton.jit
def store_decay(memory, high, low, input_gate, p, T, G, N, FLOOR: tl.constexpr, C: tl.constexpr, BI: tl.constexpr):
    """Store `load_decay` of all sources to memory `[C, C]`, for `score`."""
    for begin in range(0, C, BI):
        s = begin + tl.arange(0, BI)
        store_columns(memory, load_decay(high, low, input_gate, p, s, T, G, N, FLOOR, C), C, C, s, C, C)


@triton.jit
def score(
    rows, vectors, stride, left, scale, memory, K, DOT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Multiply rows R by scaled vectors X, both `[C, K]` in memory, and weigh: W = R diag(scale) X' * Z.

    Rows of R lie beside one another; row s of X, of which `left` exist, lies at s * stride. memory holds W and after
    it Z, both `[C, C]`. W goes through memory because a product with another's result as operand would tie all warps
    to the rows of the tile, and because `multiply_system` needs all of it for every tile.
    """
    tl.debug_barrier()
    for first in range(0, C, BI):
        s = first + tl.arange(0, BI)
        scores = tl.zeros([C, BI], tl.float32)
        for begin in range(0, K, BI):
            i = begin + tl.arange(0, BI)
            v = load_columns(rows, K, C, i, K, C) * tl.load(scale + i, mask=i < K, other=0.0)[None, :]
            x = load_columns(vectors + first * stride, stride, left - first, i, K, BI)
            scores = tl.dot(v, tl.trans(x), scores, input_precision=DOT)
        store_columns(memory, scores * load_columns(memory + C * C, C, C, s, C, C), C, C, s, C, C)
    tl.debug_barrier()


@triton.jit
def multiply_system(
    rows, gram, gram_unit, p, before, vectors, stride, left, scale, memory, columns, K, DOT: tl.constexpr,
    C: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Multiply rows R by their token's scaled system H_t + 1, after `score`; give BI columns `[C, BI]`.

    R, vectors, scale and W, in memory, as there; the scaled gram as in `load_state`, before `[C]` the decays since it.
    """
    product = tl.zeros([C, BI], tl.float32)
    for begin in range(0, C, BI):
        weight = load_columns(memory, C, C, begin + tl.arange(0, BI), C, C)
        x = load_columns(vectors + begin * stride, stride, left - begin, columns, K, BI)
        product = tl.dot(weight, x, product, input_precision=DOT)
    product *= tl.load(scale + columns, mask=columns < K, other=0.0)[None, :]
    own = tl.zeros([C, BI], tl.float32)
    for begin in range(0, K, BI):
        i = begin + tl.arange(0, BI)
        own = tl.dot(
            load_columns(rows, K, C, i, K, C),
            load_state(gram, gram_unit, p, i, columns, K, K),
            own,
            input_precision=DOT,
        )
    return product + own * before[:, None] + load_columns(rows, K, C, columns, K, C)

"""Differentiate the states' part: gradients of keys, values and gates (docs/mathematics.md, "Backward").

With solutions x, adjoints y, upstream d, decays Z and the gradients P and Q of the two states at the chunk's end,
`pair_kernel` makes the weights of all (reader, source) pairs and what passes the gates inside a chunk, `token_kernel`
the gradients of keys and of values from them, `gate_gradient_kernel` those of the gates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import decay_between, factor, load_gate, load_last, load_plain_state, load_rows, load_sums, locate


@triton.jit
def load_gradient(state, p, rows, columns, K, D):
    """Load a tile of a state's gradient `[P, K, D]`."""
    place = rows[:, None] * D + columns[None, :]
    return tl.load(state + p * K * D + place, mask=(rows < K)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["T", "N"])
def pair_kernel(
    solution,  # x [B, T, H, K]
    adjoint,  # y [B, T, H, K]
    upstream,  # d [B, T, H, V]
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    input_gate,  # [B, T, G]
    high,
    low,
    gram,  # [P, 2, K, K] float16, as in `tiles.load_state`
    gram_unit,  # [P]
    cross,  # [P, 2, K, V] float16
    cross_unit,  # [P]
    root,  # [G, K] float32: sqrt(ridge)
    gram_end,  # Q [P, K, K]
    cross_end,  # P [P, K, V]
    pairs,  # [P, R, 2, C, C] float32: Z (x'k) and Z (d'v - y'k)
    within,  # [P, C] float32
    T,
    G,
    R,
    N,
    K,
    V,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """One program a problem, through its query heads in turn."""
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    decay = decay_between(high, low, p, FLOOR, C)
    beta = load_gate(input_gate, b, g, first, left, T, G, tl.arange(0, C))
    through = tl.zeros([C, C], tl.float32)
    from_start = tl.zeros([C], tl.float32)
    across = tl.zeros([BI], tl.float32)
    for r in range(R):
        head = g * R + r
        read = tl.zeros([C, C], tl.float32)
        wanted = tl.zeros([C, C], tl.float32)
        for begin in range(0, V, BI):
            j = begin + tl.arange(0, BI)
            d = load_rows(upstream, b, first, head, G * R, V, j, T, C)
            v = load_rows(value, b, first, g, G, V, j, T, C)
            wanted = tl.dot(d, tl.trans(v), wanted, input_precision=DOT)
        for begin in range(0, K, BI):
            i = begin + tl.arange(0, BI)
            x = load_rows(solution, b, first, head, G * R, K, i, T, C)
            k = load_rows(key, b, first, g, G, K, i, T, C)
            read = tl.dot(x, tl.trans(k), read, input_precision=DOT)
            y = load_rows(adjoint, b, first, head, G * R, K, i, T, C)
            wanted = tl.dot(-y, tl.trans(k), wanted, input_precision=DOT)
            reach = tl.zeros([C, BI], tl.float32)  # G_0 d - H_0 y
            for next in range(0, V, BI):
                j = next + tl.arange(0, BI)
                d = load_rows(upstream, b, first, head, G * R, V, j, T, C)
                s = load_plain_state(cross, cross_unit, root + g * K, p, i, j, K, V, False)
                reach = tl.dot(d, tl.trans(s), reach, input_precision=DOT)
                if r == 0:
                    across += tl.sum(s * load_gradient(cross_end, p, i, j, K, V), 1)
            for next in range(0, K, BI):
                j = next + tl.arange(0, BI)
                y = load_rows(adjoint, b, first, head, G * R, K, j, T, C)
                s = load_plain_state(gram, gram_unit, root + g * K, p, i, j, K, K, True)
                reach = tl.dot(-y, tl.trans(s), reach, input_precision=DOT)
                if r == 0:
                    across += tl.sum(s * load_gradient(gram_end, p, i, j, K, K), 1)
            from_start += tl.sum(reach * x, 1)
        read *= decay
        through += read * wanted
        wanted *= decay
        place = pairs + (p * R + r) * 2 * C * C + t[:, None] * C + t[None, :]
        tl.store(place, read)
        tl.store(place + C * C, wanted)
    # gate j lies between what sources s < j wrote and what readers t >= j read
    readers = tl.where(t[:, None] <= t[None, :], 1.0, 0.0)
    between = tl.dot(readers, through * beta[None, :], input_precision=DOT)
    inside = tl.sum(tl.where(t[None, :] < t[:, None], between, 0.0), 1)
    c, d = load_sums(high, low, p, C)
    from_start *= factor(c + d, FLOOR)
    inside += tl.sum(readers * from_start[None, :], 1)
    end, rest = load_last(high, low, p, C)
    tl.store(within + p * C + t, inside + factor(end + rest, FLOOR) * tl.sum(across, 0))


@triton.jit(do_not_specialize=["problems", "T", "N"])
def token_kernel(
    solution,  # x [B, T, H, K]
    adjoint,  # y [B, T, H, K]
    upstream,  # d [B, T, H, V]
    key,
    value,
    input_gate,
    high,
    low,
    gram_end,
    cross_end,
    pairs,
    out,  # the gradient of key or of value, [B, T, G, K or V]
    ridge,  # [P, K] float32: minus the sum of x y over a problem's rows
    sums,  # [tiles, 2, P, C] float32: gradient before the input gate, times operand; its part from later chunks
    problems,
    T,
    G,
    R,
    N,
    K,
    V,
    KEY: tl.constexpr,
    DOT: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BI: tl.constexpr,
):
    """One program a problem and tile of BI columns of the key's gradient (KEY) or of the value's."""
    p = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    j = tile * BI + tl.arange(0, BI)
    later = tl.zeros([C, BI], tl.float32)
    twice = tl.zeros([C, BI], tl.float32)
    if KEY:
        D = K
        own = load_rows(key, b, first, g, G, K, j, T, C)
        for begin in range(0, V, BI):
            i = begin + tl.arange(0, BI)
            v = load_rows(value, b, first, g, G, V, i, T, C)
            later = tl.dot(v, tl.trans(load_gradient(cross_end, p, j, i, K, V)), later, input_precision=DOT)
        for begin in range(0, K, BI):
            i = begin + tl.arange(0, BI)
            k = load_rows(key, b, first, g, G, K, i, T, C)
            twice = tl.dot(k, load_gradient(gram_end, p, i, j, K, K), twice, input_precision=DOT)
    else:
        D = V
        own = load_rows(value, b, first, g, G, V, j, T, C)
        for begin in range(0, K, BI):
            i = begin + tl.arange(0, BI)
            k = load_rows(key, b, first, g, G, K, i, T, C)
            later = tl.dot(k, load_gradient(cross_end, p, i, j, K, V), later, input_precision=DOT)
    c, d = load_sums(high, low, p, C)
    end, rest = load_last(high, low, p, C)
    fade = factor((end - c) + (rest - d), FLOOR)
    # of the two states' parts the cross state's is counted with the value
    tail = tl.sum((twice if KEY else later) * own, 1) * fade
    gradient = (later + 2.0 * twice) * fade[:, None]
    lost = tl.zeros([BI], tl.float32)
    for r in range(R):
        head = g * R + r
        place = pairs + (p * R + r) * 2 * C * C + t[None, :] * C + t[:, None]  # transposed
        read = tl.load(place)
        if KEY:
            x = load_rows(solution, b, first, head, G * R, K, j, T, C)
            y = load_rows(adjoint, b, first, head, G * R, K, j, T, C)
            gradient = tl.dot(tl.load(place + C * C), x, gradient, input_precision=DOT)
            gradient = tl.dot(-read, y, gradient, input_precision=DOT)
            lost -= tl.sum(x * y, 0)
        else:
            x = load_rows(upstream, b, first, head, G * R, V, j, T, C)
            gradient = tl.dot(read, x, gradient, input_precision=DOT)
    if KEY:
        tl.store(ridge + p * K + j, lost, mask=j < K)
    place = sums + (tile * 2 * problems + p) * C + t
    tl.store(place, tl.sum(gradient * own, 1))
    tl.store(place + problems * C, tail)
    gradient *= load_gate(input_gate, b, g, first, left, T, G, tl.arange(0, C))[:, None]
    out += ((b * T + first) * G + g) * D
    tl.store(out + t[:, None] * (G * D) + j[None, :], gradient, mask=(t < left)[:, None] & (j < D)[None, :])


@triton.jit(do_not_specialize=["problems", "tiles", "T", "N"])
def gate_gradient_kernel(
    log_forget,  # [B, T, G]
    input_gate,
    within,  # [P, C]
    sums,  # [tiles, 2, P, C] of keys and values
    d_log_forget,  # [B, T, G]
    d_input_gate,
    problems,
    tiles,
    T,
    G,
    N,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
):
    """One program a problem; a restart's gradient is exactly 0."""
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    gate = tl.zeros([C], tl.float32)
    tail = tl.zeros([C], tl.float32)
    for tile in range(tiles):
        place = sums + (tile * 2 * problems + p) * C + t
        gate += tl.load(place)
        tail += tl.load(place + problems * C)
    tail *= load_gate(input_gate, b, g, first, left, T, G, tl.arange(0, C))
    earlier = tl.sum(tl.where(t[None, :] < t[:, None], tail[None, :], 0.0), 1)
    place = (b * T + first + t) * G + g
    log = tl.load(log_forget + place, mask=t < left, other=0.0)
    change = tl.where(log < FLOOR, 0.0, tl.load(within + p * C + t) + earlier)
    tl.store(d_log_forget + place, change, mask=t < left)
    tl.store(d_input_gate + place, 0.5 * gate, mask=t < left)

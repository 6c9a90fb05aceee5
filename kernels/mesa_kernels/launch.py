"""Launch the kernels of one forward pass: what is allocated, in which order, with which tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import conjugate_gradients, factorisation, gates, one_step, price, read, series, states, token_gradients
from .tiles import CHUNK, FLOOR
from .tuning import choose

PROGRAMS = 1024
"""Programs that share out the problems of a solve, each with memory of its own for four blocks of vectors and two of
scores; more than any card runs at once."""
WIDTH = 64
"""Columns of a row that the factorisation works on at once."""


class Sizes(NamedTuple):
    """Hold the sizes of one call, and whether its inputs are of 16 bits."""

    B: int
    T: int
    H: int
    G: int
    K: int
    V: int
    half: bool
    device: torch.device

    @property
    def R(self) -> int:  # noqa: N802
        """Return the query heads a key head."""
        return self.H // self.G

    @property
    def halves(self) -> bool:
        """Tell whether float16 operands may be used: for inputs of 16 bits, where registers hold all vectors."""
        return self.half and self.K <= 128

    @property
    def N(self) -> int:  # noqa: N802
        """Return the chunks of a sequence."""
        return (self.T + CHUNK - 1) // CHUNK

    @property
    def P(self) -> int:  # noqa: N802
        """Return the problems."""
        return self.B * self.G * self.N


class Gates(NamedTuple):
    """Hold what `gates.gate_kernel` makes."""

    high: Tensor
    low: Tensor
    log_ratio: Tensor
    stretch: Tensor
    start: Tensor
    reach: Tensor


class Prepared(NamedTuple):
    """Hold what both passes read: inputs laid out, gates summed, grams at the chunks' starts, and the final one."""

    sizes: Sizes
    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    ridge: Tensor
    scale: Tensor
    gates: Gates
    gram: Tensor
    last_gram: Tensor


def fresh(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate what a kernel will fill: every allocation of this package is made here."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def power_of_two(size: int) -> int:
    """Give the smallest power of two that holds `size`, at least 16, which a product needs."""
    return max(16, 1 << (size - 1).bit_length())


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
) -> Prepared:
    """Sum the gates and scan the gram; arguments as in `forward`."""
    B, T, H, K = query.shape
    sizes = Sizes(B, T, H, key.shape[2], K, value.shape[3], query.dtype != torch.float32, query.device)
    query, key, value, log_forget, input_gate = (x.contiguous() for x in (query, key, value, log_forget, input_gate))
    ridge = ridge.to(torch.float32).contiguous()
    scale = ridge.rsqrt()
    G, N, P = sizes.G, sizes.N, sizes.P
    shapes = {"start": (P,), "reach": (P,)}
    dtypes = {"stretch": torch.int32}
    sums = Gates(*(fresh(query, *shapes.get(x, (P, CHUNK)), dtype=dtypes.get(x, torch.float32)) for x in Gates._fields))
    choice = choose("gates", sizes)
    gates.gate_kernel[(P,)](log_forget, *sums, T, G, N, FLOOR=FLOOR, C=CHUNK, **choice.options)
    symmetric = (0.5 * (gram + gram.mT)).to(torch.float32).contiguous()
    grams, last_gram = scan("gram", key, key, input_gate, sums, symmetric, sizes)
    return Prepared(sizes, query, key, value, log_forget, input_gate, ridge, scale, sums, grams, last_gram)


def scan_cross(made: Prepared, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Scan the cross state from its initial one; see `scan`."""
    start = cross.to(torch.float32).contiguous()
    return scan("cross", made.key, made.value, made.input_gate, made.gates, start, made.sizes)


def scan(
    name: str, left: Tensor, right: Tensor, input_gate: Tensor, sums: Gates, initial: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Carry a state over the chunks, "gram" or "cross", or backwards its gradient, "gram adjoint" or "cross adjoint".

    Arguments and results as those of `states.scan_kernel`.
    """
    reverse = name.endswith("adjoint")
    B, G, K, D = initial.shape
    each, final = fresh(left, sizes.P, K, D), fresh(left, B, G, K, D)
    choice = choose(name, sizes)
    BI, BJ = (min(choice.tile, power_of_two(size)) for size in (K, D))
    grid = ((K + BI - 1) // BI, (D + BJ - 1) // BJ, B * G)
    states.scan_kernel[grid](
        left, right, input_gate, sums.high, sums.low, initial, each, final, sizes.T, G,
        sizes.R if reverse else 1, sizes.N, K, D, REVERSE=reverse, SYMMETRIC=name == "gram adjoint", DOT=choice.dot,
        FLOOR=FLOOR, C=CHUNK, BI=BI, BJ=BJ, **choice.options,
    )  # fmt: skip
    return each, final


def solve(
    made: Prepared,
    rhs: Tensor,
    tolerance: float,
    max_steps: int,
    method: str,
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Solve for all rows of rhs `[B, T, H, K]`; give x (float32), the steps `[B, N, H]` and the factors."""
    s, sums = made.sizes, made.gates
    fixed = {"FLOOR": FLOOR, "C": CHUNK}
    BK = power_of_two(s.K)
    carried, gains = factors or (fresh(rhs, s.P, s.K, s.K), fresh(rhs, s.P, CHUNK, s.K))
    passes = price.count_passes(tolerance)
    plan = fresh(rhs, s.P, price.PLAN, dtype=torch.int32)
    # The series bounds the error in the scaled norm.
    limit = (price.SLACK * tolerance) * made.scale.amin(-1) / made.scale.amax(-1)
    constants = {name: getattr(price, name) for name in PRICES}
    choice = choose("price", s)
    price.price_kernel[(s.P,)](
        made.key, made.input_gate, sums.high, sums.low, sums.reach, made.gram, made.scale, limit, carried, plan,
        tolerance, max_steps, passes, s.T, s.G, s.R, s.N, s.K, METHOD=method, REUSED=factors is not None,
        MAY_HALVE=s.halves, **constants, **fixed, BI=min(choice.tile, BK), **choice.options,
    )  # fmt: skip
    if factors is None:
        choice = choose("factor", s)
        factorisation.factor_kernel[(s.P,)](
            made.key, made.input_gate, sums.log_ratio, sums.stretch, sums.start, made.gram, made.scale, plan, carried,
            gains, s.T, s.G, s.N, s.K, DOT=choice.dot, C=CHUNK, BT=min(choice.tile, BK), BJ=min(WIDTH, BK),
            **choice.options,
        )  # fmt: skip
    x = fresh(rhs, s.B, s.T, s.H, s.K)
    steps = fresh(rhs, s.B, s.N, s.H, dtype=torch.int32)
    programs = min(PROGRAMS, s.P * s.R)
    vectors = fresh(rhs, programs, 4 * CHUNK * s.K + 2 * CHUNK * CHUNK)
    places = (rhs, x, steps, made.key, made.input_gate, sums.high, sums.low, made.gram, made.scale)
    shape = (s.T, s.G, s.R, s.N, s.K)
    choice = choose("series", s)
    series.series_kernel[(programs,)](
        *places, sums.log_ratio, sums.stretch, plan, carried, gains, vectors, s.P, *shape, DOT=choice.dot, **fixed,
        BI=choice.tile, **choice.options,
    )  # fmt: skip
    if s.halves:
        correct_halves(made, rhs, x, steps, plan, carried, gains, vectors, passes)
    choice = choose("gradients", s)
    conjugate_gradients.gradient_kernel[(programs,)](
        *places, plan, vectors, s.P, tolerance / (1.0 + tolerance), max_steps, *shape, DOT=choice.dot,
        REFINEMENTS=conjugate_gradients.REFINEMENTS, **fixed, BK=BK, BI=choice.tile, **choice.options,
    )  # fmt: skip
    return x, steps, (carried, gains)


def correct_halves(
    made: Prepared, rhs: Tensor, x: Tensor, steps: Tensor, plan: Tensor, carried: Tensor, gains: Tensor,
    vectors: Tensor, passes: int,
) -> None:  # fmt: skip
    """Solve with float16 operands by `passes`, each after the first for what the true residual in float32 asks for."""
    s, sums = made.sizes, made.gates
    shape, BK = (s.T, s.G, s.R, s.N, s.K), power_of_two(s.K)
    left = rhs
    for number in range(passes):
        if number:
            choice = choose("residual", s)
            left = fresh(rhs, *x.shape)
            series.residual_kernel[(vectors.shape[0],)](
                rhs, x, left, made.key, made.input_gate, sums.high, sums.low, made.gram, made.ridge, plan, vectors, s.P,
                *shape, DOT=choice.dot, FLOOR=FLOOR, C=CHUNK, BI=choice.tile, **choice.options,
            )  # fmt: skip
        choice = choose("half", s)
        series.half_kernel[(s.P, s.R)](
            left, x, steps, made.scale, sums.log_ratio, sums.stretch, plan, carried, gains, *shape, LATER=number > 0,
            C=CHUNK, BK=BK, BI=choice.tile, **choice.options,
        )  # fmt: skip


PRICES = ("FACTOR_PRICE", "STEP_PRICE", "ROUNDING", "CORRECTION", "HALF_GAIN", "HALF_EIGENVALUE")


def read_states(made: Prepared, rows: Tensor, key: Tensor, value: Tensor, states: Tensor, dtype: torch.dtype) -> Tensor:
    """Read states `[P, K, D]` (any strides) with rows `[B, T, H, K]`; see `read.read_kernel`."""
    s = made.sizes
    K, D = states.shape[1:]
    out = fresh(rows, s.B, s.T, s.H, D, dtype=dtype)
    choice = choose("read", s)
    BI, BJ = (min(choice.tile, power_of_two(size)) for size in (K, D))
    read.read_kernel[(s.P, s.R, (D + BJ - 1) // BJ)](
        rows, key, value, made.input_gate, made.gates.high, made.gates.low, states, out, states.stride(1),
        states.stride(2), s.T, s.G, s.R, s.N, K, D, DOT=choice.dot, FLOOR=FLOOR, C=CHUNK, BI=BI, BJ=BJ,
        **choice.options,
    )  # fmt: skip
    return out


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    tolerance: float,
    max_steps: int,
    method: str = "auto",
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute mesa attention: output, final gram and cross, solutions, steps and the factors for the backward pass.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]` of one dtype of float32, bfloat16 and float16; gates
    `[B, T, G]`, ridge `[G, K]`, states `[B, G, K, K]` and `[B, G, K, V]`; B and T at least 1. Returns output
    `[B, T, H, V]` in query's dtype; in float32 the final states, the solutions `[B, T, H, K]` and the factors
    `[P, K, K]` and `[P, C, K]`; steps `[B, N, H]` (int32). The relative error of the solutions is at most `tolerance`.
    method: "auto" prices every chunk and head; "shared" and "cg" are for measurements. keep: if not, the factors are
    released as soon as they are used, and two empty tensors stand for them.
    """
    made = prepare(query, key, value, log_forget, input_gate, ridge, gram)
    x, steps, factors = solve(made, made.query, tolerance, max_steps, method)
    if not keep:
        factors = fresh(x, 0), fresh(x, 0)
    crosses, last_cross = scan_cross(made, cross)
    output = read_states(made, x, made.key, made.value, crosses, query.dtype)
    return output, made.last_gram, last_cross, x, steps, *factors


def backward(
    upstream: Tensor,
    gram_upstream: Tensor,
    cross_upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    solution: Tensor,
    carried: Tensor,
    gains: Tensor,
    tolerance: float,
    max_steps: int,
    method: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the eight tensor arguments of `forward`, in their dtypes.

    carried, gains: the forward pass's factors, or two empty tensors, for which they are made again.
    """
    made = prepare(query, key, value, log_forget, input_gate, ridge, gram)
    crosses, _ = scan_cross(made, cross)
    s, sums, d, x = made.sizes, made.gates, upstream.contiguous(), solution.contiguous()
    rhs = read_states(made, d, made.value, made.key, crosses.mT, torch.float32)
    y = solve(made, rhs, tolerance, max_steps, method, (carried, gains) if carried.numel() else None)[0]
    del rhs
    last_gram = (0.5 * (gram_upstream + gram_upstream.mT)).to(torch.float32).contiguous()
    last_cross = cross_upstream.to(torch.float32).contiguous()
    gram_end, d_gram = scan("gram adjoint", x, y, made.input_gate, sums, last_gram, s)
    cross_end, d_cross = scan("cross adjoint", x, d, made.input_gate, sums, last_cross, s)
    rows, tokens = (x, y, d), (made.key, made.value, made.input_gate, sums.high, sums.low)
    shape, fixed = (s.T, s.G, s.R, s.N, s.K, s.V), {"FLOOR": FLOOR, "C": CHUNK}
    pairs, within = fresh(x, s.P, s.R, 2, CHUNK, CHUNK), fresh(x, s.P, CHUNK)
    choice = choose("pairs", s)
    token_gradients.pair_kernel[(s.P,)](
        *rows, *tokens, made.gram, crosses, gram_end, cross_end, pairs, within, *shape, DOT=choice.dot, **fixed,
        BI=min(choice.tile, power_of_two(max(s.K, s.V))), **choice.options,
    )  # fmt: skip
    d_key, d_value = (fresh(x, *operand.shape, dtype=operand.dtype) for operand in (made.key, made.value))
    d_ridge = fresh(x, s.P, s.K)
    choice = choose("tokens", s)
    BI = min(choice.tile, power_of_two(max(s.K, s.V)))
    across = [(size + BI - 1) // BI for size in (s.K, s.V)]
    parts = fresh(x, sum(across), 2, s.P, CHUNK)
    for of_key, out, tiles, part in ((True, d_key, across[0], parts), (False, d_value, across[1], parts[across[0] :])):
        token_gradients.token_kernel[(s.P, tiles)](
            *rows, *tokens, gram_end, cross_end, pairs, out, d_ridge, part, s.P, *shape, KEY=of_key, DOT=choice.dot,
            **fixed, BI=BI, **choice.options,
        )  # fmt: skip
    d_log, d_gate = (fresh(x, *operand.shape, dtype=operand.dtype) for operand in (made.log_forget, made.input_gate))
    choice = choose("gates", s)
    token_gradients.gate_gradient_kernel[(s.P,)](
        made.log_forget, made.input_gate, within, parts, d_log, d_gate, s.P, sum(across), s.T, s.G, s.N, **fixed,
        **choice.options,
    )  # fmt: skip
    ridges = d_ridge.view(s.B, s.G, s.N, s.K).sum((0, 2)).to(ridge.dtype)
    return y.to(query.dtype), d_key, d_value, d_log, d_gate, ridges, d_gram.to(gram.dtype), d_cross.to(cross.dtype)


def step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor,
    gram: Tensor,
    cross: Tensor,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take one step of decoding: output, the new states beside one another, solutions and steps.

    Arguments as in `forward`, with T = 1; states of any strides. Returns output `[B, 1, H, V]` in query's dtype, state
    `[B, G, K, K + V]` and solutions `[B, 1, H, K]` in float32, and steps `[B, 1, H]` (int32), 0 where conjugate
    gradients did not end within `max_steps` (or twice K, if that is less) and the system was factored.
    """
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    sizes = Sizes(B, T, H, G, K, V, query.dtype != torch.float32, query.device)
    query, key, value, log_forget, input_gate = (x.contiguous() for x in (query, key, value, log_forget, input_gate))
    gram, cross = (x.to(torch.float32) for x in (gram, cross))
    gram, cross = (x if x.stride(-1) == 1 else x.contiguous() for x in (gram, cross))
    state, output = fresh(query, B, G, K, K + V), fresh(query, B, T, H, V, dtype=query.dtype)
    solution, memory = fresh(query, B, T, H, K), fresh(query, B, G, 2, K)
    steps = fresh(query, B, T, H, dtype=torch.int32)
    choice = choose("one step", sizes._replace(V=K))
    BK = power_of_two(K)
    held = BK <= one_step.HELD_SIZE
    one_step.one_step_kernel[(B * G,)](
        query, key, value, log_forget, input_gate, ridge.to(torch.float32).rsqrt().contiguous(), gram, cross, state,
        output, solution, steps, memory, tolerance / (1.0 + tolerance), min(max_steps, one_step.STEPS_A_SIZE * K),
        *gram.stride()[:3], *cross.stride()[:3], G, sizes.R, K, V, HELD=held,
        RESTARTS=one_step.RESTARTS, ROUNDING=one_step.ROUNDING, FLOOR=FLOOR, BK=BK, BI=BK if held else choice.tile,
        BJ=min(choice.tile, power_of_two(V)), **choice.options,
    )  # fmt: skip
    return output, state, solution, steps

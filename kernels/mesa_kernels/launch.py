"""Allocate tensors and launch the kernels of a forward pass, a backward pass or a decoding step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import conjugate_gradients, gates, one_step, read, solver, states, token_gradients
from .tiles import CHUNK, FLOOR, NARROWEST, SIDE
from .tuning import Sizes, choose

PROGRAMS = 1024
"""Programs among which the problems of a solve in memory are divided, each with four blocks of vectors and two of
scores; more than any GPU runs at once."""
FEW_PROGRAMS = 256
"""The same for the problems that the on-chip solver left."""
REGISTERS = 65536
"""Registers of a multiprocessor. Two programs of a bfloat16 scan share them if K is 64 or 128, without spilling."""


class Call(NamedTuple):
    """The tensors of one call.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]` of one dtype of float32, bfloat16 and float16; gates
    `[B, T, G]`, ridge `[G, K]`, initial states gram `[B, G, K, K]` and cross `[B, G, K, V]`; B and T at least 1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    ridge: Tensor
    gram: Tensor
    cross: Tensor

    @property
    def sizes(self) -> Sizes:
        """Return the sizes."""
        B, T, H, K = self.query.shape
        G, V = self.value.shape[2:]
        return Sizes(B, T, H, G, K, V, self.query.dtype != torch.float32, self.query.device)

    def contiguous(self) -> Call:
        """Make the tensors of tokens contiguous, as the kernels need them; states and ridge stay as they are."""
        return Call(*(x.contiguous() if place < 5 else x for place, x in enumerate(self)))


class Gates(NamedTuple):
    """The results of `gates.gate_kernel`."""

    high: Tensor
    low: Tensor
    lift: Tensor
    before: Tensor
    after: Tensor
    weights: Tensor
    growth: Tensor


class Scanned(NamedTuple):
    """The common inputs of both passes: contiguous tensors, summed gates, states at the chunks' starts, final states.

    gram and cross are stored in two float16 planes with their units (`tiles.load_state`). root: sqrt(ridge).
    """

    sizes: Sizes
    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    root: Tensor
    scale: Tensor
    gates: Gates
    gram: Tensor
    gram_unit: Tensor
    last_gram: Tensor
    cross: Tensor
    cross_unit: Tensor
    last_cross: Tensor


def fresh(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate a tensor that a kernel will fill; all allocations of this package are made here."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size` and at least 16, the minimum for products."""
    return max(16, 1 << (size - 1).bit_length())


def prepare(call: Call) -> Scanned:
    """Sum the gates and scan the states."""
    sizes, call = call.sizes, call.contiguous()
    query, key, value = call.query, call.key, call.value
    ridge = call.ridge.to(torch.float32).contiguous()
    scale = ridge.rsqrt()
    T, G, N, K, P = sizes.T, sizes.G, sizes.N, sizes.K, sizes.P
    high, low, lift, before, after = (fresh(query, P, CHUNK) for _ in range(5))
    weights = fresh(query, P if sizes.on_chip else 0, CHUNK, CHUNK)
    sums = Gates(high, low, lift, before, after, weights, fresh(query, 2, P))
    choice = choose("gates", sizes)
    gates.gate_kernel[(P,)](
        key=key, value=value, log_forget=call.log_forget, input_gate=call.input_gate, scale=scale, **sums._asdict(),
        problems=P, T=T, G=G, N=N, K=K, V=sizes.V, WEIGHTS=sizes.on_chip, FLOOR=FLOOR, C=CHUNK,
        BI=min(choice.tile, power_of_two(max(K, sizes.V))), **choice.options,
    )  # fmt: skip
    symmetric = (0.5 * (call.gram + call.gram.mT)).to(torch.float32).contiguous()
    first_cross = call.cross.to(torch.float32).contiguous()
    grams = scan("gram", key, key, sums, symmetric, sizes, scale)
    crosses = scan("cross", key, value, sums, first_cross, sizes, scale)
    return Scanned(
        sizes, query, key, value, call.log_forget, call.input_gate, ridge.sqrt(), scale, sums, *grams, *crosses
    )  # fmt: skip


def scan(
    name: str, left: Tensor, right: Tensor, sums: Gates, initial: Tensor, sizes: Sizes, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan a state over the chunks ("gram", "cross"), or its gradient backwards ("gram adjoint", "cross adjoint").

    Returns the states, their units (backwards only for 16-bit inputs) and the final state; see `states.scan_kernel`.
    """
    reverse, gram = name.endswith("adjoint"), name.startswith("gram")
    B, G, K, D = initial.shape
    if reverse:
        each = fresh(left, sizes.P, K, D, dtype=torch.float16 if sizes.half else torch.float32)
        unit = fresh(left, *([sizes.P, *(-(-size // SIDE) for size in (K, D))] if sizes.half else [0]))
    else:
        each, unit = fresh(left, B * G, sizes.N, 2, K, D, dtype=torch.float16), fresh(left, sizes.P)
    final = fresh(left, B, G, K, D)
    row, column = D, 1
    if name == "cross adjoint":  # the transpose, so that the operand of 16 bits is the left one
        left, right, K, D, row, column = right, left, D, K, 1, D
    choice = choose(name, sizes)
    BI, BJ = min(2 * choice.tile, power_of_two(K)), min(choice.tile, power_of_two(D))
    if sizes.half:  # whole blocks of SIDE rows, each with its unit
        BI, BJ = max(SIDE, BI), NARROWEST
    tiles = -(-K // BI) * -(-D // BJ)
    capped = K == BI and sizes.half and torch.float16 not in (left.dtype, right.dtype)
    most = min(255, REGISTERS // (2 * 32 * choice.warps)) if capped else None
    states.scan_kernel[(tiles * B * G,)](
        left=left, right=right, weight=sums.before if reverse else sums.after, before=sums.before, initial=initial,
        states=each, final=final, scale=scale, growth=sums.growth[0 if gram else 1], unit=unit, T=sizes.T, N=sizes.N,
        G=G, R=sizes.R if reverse else 1, K=K, D=D, ROW=row, COLUMN=column, REVERSE=reverse, SYMMETRIC=gram,
        TOP=states.TOP, LEAST=states.LEAST_GRAM if name == "gram" else states.LEAST, DOT=choice.dot, C=CHUNK, SIDE=SIDE,
        BI=BI, BJ=BJ, maxnreg=most, **choice.options,
    )  # fmt: skip
    return each, unit, final


def solve(
    scans: Scanned, ends: Tensor, tolerance: float, max_steps: int, *, adjoint: bool, on_chip_steps: int = solver.STEPS
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Solve for the queries and write the output, read from the cross state, to ends `[B, T, H, V]`.

    adjoint: ends is the gradient of the output instead, and the right-hand sides are G_t d_t. Returns x (float32),
    steps `[B, N, H]` and, if the on-chip solver ran, marks `[P, R]` of the problems that it could not certify. These,
    or all problems if it did not run, are solved in memory in float32.
    """
    s, sums = scans.sizes, scans.gates
    x, steps = fresh(ends, s.B, s.T, s.H, s.K), fresh(ends, s.B, s.N, s.H, dtype=torch.int32)
    limit, rhs, marks = tolerance / (1.0 + tolerance), scans.query, None
    if s.on_chip:
        marks, measures = fresh(ends, s.P, s.R, dtype=torch.int32), fresh(ends, s.P, s.R, 2 + solver.PASSES, CHUNK)
        rest = fresh(ends, s.P, s.R, CHUNK, s.K)
        parts = fresh(ends, s.P, s.R, solver.PASSES, CHUNK, s.K, dtype=torch.float16)
        choice = choose("solve", s)
        solver.solve_kernel[(s.P * s.R,)](
            query=scans.query, x=x, steps=steps, rest=rest, parts=parts, measures=measures, marks=marks,
            key=scans.key, value=scans.value, lift=sums.lift, before=sums.before, weights=sums.weights,
            gram=scans.gram, gram_unit=scans.gram_unit, cross=scans.cross, cross_unit=scans.cross_unit,
            scale=scans.scale, ends=ends, limit=limit, max_steps=min(max_steps, on_chip_steps), stride=solver.STRIDE,
            T=s.T, N=s.N, G=s.G, R=s.R, K=s.K, V=s.V, ADJOINT=adjoint, PASSES=solver.PASSES, GAIN=solver.GAIN,
            FREEZE=solver.FREEZE, C=CHUNK, BK=max(NARROWEST, power_of_two(s.K)), BV=NARROWEST, **choice.options,
        )  # fmt: skip
    if adjoint:
        rhs = fresh(ends, s.B, s.T, s.H, s.K)
        read_states(scans, ends, rhs, adjoint=True, marks=marks)
    programs = min(FEW_PROGRAMS if s.on_chip else PROGRAMS, s.P * s.R)
    vectors = fresh(ends, programs, 4 * CHUNK * s.K + 2 * CHUNK * CHUNK)
    choice = choose("gradients", s)
    conjugate_gradients.gradient_kernel[(programs,)](
        rhs=rhs, out=x, steps=steps, key=scans.key, input_gate=scans.input_gate, high=sums.high, low=sums.low,
        gram=scans.gram, gram_unit=scans.gram_unit, scale=scans.scale, marks=steps if marks is None else marks,
        vectors=vectors, problems=s.P, limit=limit, max_steps=max_steps, T=s.T, G=s.G, R=s.R, N=s.N, K=s.K,
        MARKED=s.on_chip, DOT=choice.dot, REFINEMENTS=conjugate_gradients.REFINEMENTS, FLOOR=FLOOR, C=CHUNK,
        BK=power_of_two(s.K), BI=choice.tile, **choice.options,
    )  # fmt: skip
    if not adjoint:
        read_states(scans, x, ends, adjoint=False, marks=marks)
    return x, steps, marks


def read_states(scans: Scanned, rows: Tensor, out: Tensor, *, adjoint: bool, marks: Tensor | None) -> None:
    """Multiply solutions `[B, T, H, K]` (only marked problems, if given) by the cross state; see `read.read_kernel`.

    adjoint: multiply the gradient of the output `[B, T, H, V]` instead. The result is written to out.
    """
    s = scans.sizes
    K, D, key, value = (s.V, s.K, scans.value, scans.key) if adjoint else (s.K, s.V, scans.key, scans.value)
    choice = choose("read", s)
    BI, BJ = (min(choice.tile, power_of_two(size)) for size in (K, D))
    read.read_kernel[(s.P, s.R, (D + BJ - 1) // BJ)](
        rows=rows, key=key, value=value, input_gate=scans.input_gate, high=scans.gates.high, low=scans.gates.low,
        states=scans.cross, unit=scans.cross_unit, root=scans.root, out=out,
        marks=out if marks is None else marks, T=s.T, G=s.G, R=s.R, N=s.N, K=K, D=D, FLIPPED=adjoint,
        MARKED=marks is not None, DOT=choice.dot, FLOOR=FLOOR, C=CHUNK, BI=BI, BJ=BJ, **choice.options,
    )  # fmt: skip


def forward(*operands: Tensor, tolerance: float, max_steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute mesa attention: output, final gram and cross, solutions and steps.

    operands: those of `Call`. Returns output `[B, T, H, V]` in query's dtype; in float32 the final states and the
    solutions `[B, T, H, K]`; steps `[B, N, H]` (int32). The relative error of the solutions is at most `tolerance`.
    """
    scans = prepare(Call(*operands))
    s = scans.sizes
    output = fresh(scans.query, s.B, s.T, s.H, s.V, dtype=scans.query.dtype)
    x, steps, _ = solve(scans, output, tolerance, max_steps, adjoint=False)
    return output, scans.last_gram, scans.last_cross, x, steps


def backward(
    upstream: Tensor,
    gram_upstream: Tensor,
    cross_upstream: Tensor,
    *operands_and_solution: Tensor,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the operands, in their dtypes, from those of output and final states.

    The operands are followed by the solutions that `forward` returned.
    """
    *operands, solution = operands_and_solution
    call = Call(*operands)
    scans = prepare(call)
    s, sums, d, x = scans.sizes, scans.gates, upstream.contiguous(), solution.contiguous()
    y = solve(scans, d, tolerance, max_steps, adjoint=True)[0]
    last_gram = (0.5 * (gram_upstream + gram_upstream.mT)).to(torch.float32).contiguous()
    last_cross = cross_upstream.to(torch.float32).contiguous()
    gram_end, gram_end_unit, d_gram = scan("gram adjoint", x, y, sums, last_gram, s, scans.scale)
    cross_end, cross_end_unit, d_cross = scan("cross adjoint", x, d, sums, last_cross, s, scans.scale)
    d_key, d_value, d_log, d_gate = (
        fresh(x, *operand.shape, dtype=operand.dtype)
        for operand in (scans.key, scans.value, scans.log_forget, scans.input_gate)
    )
    d_ridge = fresh(x, s.P, s.K)
    pairs = fresh(x, s.P, s.R, 2, CHUNK, CHUNK, dtype=torch.float16 if s.half else torch.float32)
    choice = choose("tokens", s)
    BI, BJ = (NARROWEST, NARROWEST) if s.half else (choice.tile, 16)
    token_gradients.token_kernel[(s.P,)](
        solution=x, adjoint=y, upstream=d, key=scans.key, value=scans.value, log_forget=scans.log_forget,
        input_gate=scans.input_gate, high=sums.high, low=sums.low, gram=scans.gram, gram_unit=scans.gram_unit,
        cross=scans.cross, cross_unit=scans.cross_unit, root=scans.root, gram_end=gram_end,
        gram_end_unit=gram_end_unit, cross_end=cross_end, cross_end_unit=cross_end_unit, pairs=pairs,
        units=fresh(x, s.P, s.R, 5), within=fresh(x, s.P, CHUNK), d_key=d_key, d_value=d_value,
        d_log_forget=d_log, d_input_gate=d_gate, d_ridge=d_ridge, T=s.T, G=s.G, R=s.R, N=s.N, K=s.K, V=s.V, HALF=s.half,
        DOT=choice.dot, FLOOR=FLOOR, C=CHUNK, SIDE=SIDE, BI=BI, BJ=BJ, **choice.options,
    )  # fmt: skip
    ridges = d_ridge.view(s.B, s.G, s.N, s.K).sum((0, 2)).to(call.ridge.dtype)
    states = d_gram.to(call.gram.dtype), d_cross.to(call.cross.dtype)
    return y.to(call.query.dtype), d_key, d_value, d_log, d_gate, ridges, *states


def step(
    *operands: Tensor, tolerance: float, max_steps: int, held_size: int = one_step.HELD_SIZE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take one decoding step: return output, the new states side by side, solutions and steps.

    operands: those of `Call`, with T = 1; states of any strides. Returns output `[B, 1, H, V]` in query's dtype, state
    `[B, G, K, K + V]` and solutions `[B, 1, H, K]` in float32, and steps `[B, 1, H]` (int32), 0 where conjugate
    gradients did not end within `max_steps` (or twice K, if that is less) and the system was factored. A gram of keys
    up to held_size stays in registers.
    """
    call = Call(*operands)
    sizes, call = call.sizes, call.contiguous()
    query, B, T, H, G, K, V = call.query, sizes.B, sizes.T, sizes.H, sizes.G, sizes.K, sizes.V
    gram, cross = (x.to(torch.float32) for x in (call.gram, call.cross))
    gram, cross = (x if x.stride(-1) == 1 else x.contiguous() for x in (gram, cross))
    state, output = fresh(query, B, G, K, K + V), fresh(query, B, T, H, V, dtype=query.dtype)
    solution, memory = fresh(query, B, T, H, K), fresh(query, B, G, 2, K)
    steps = fresh(query, B, T, H, dtype=torch.int32)
    choice = choose("one step", sizes._replace(V=K))
    BK = power_of_two(K)
    held = held_size >= BK
    one_step.one_step_kernel[(B * G,)](
        query=query, key=call.key, value=call.value, log_forget=call.log_forget, input_gate=call.input_gate,
        scale=call.ridge.to(torch.float32).rsqrt().contiguous(), gram=gram, cross=cross, state=state, output=output,
        solution=solution, steps=steps, memory=memory, limit=tolerance / (1.0 + tolerance),
        max_steps=min(max_steps, one_step.STEPS_A_SIZE * K), gram_batch=gram.stride(0), gram_head=gram.stride(1),
        gram_stride=gram.stride(2), cross_batch=cross.stride(0), cross_head=cross.stride(1),
        cross_stride=cross.stride(2), G=G, R=sizes.R, K=K, V=V, HELD=held, RESTARTS=one_step.RESTARTS,
        ROUNDING=one_step.ROUNDING, FLOOR=FLOOR, BK=BK, BI=BK if held else choice.tile,
        BJ=min(choice.tile, power_of_two(V)), **choice.options,
    )  # fmt: skip
    return output, state, solution, steps

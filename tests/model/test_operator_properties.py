"""Check what holds of every call of mesa attention, on calls drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import Operands, attend, call_operator, make_keys, single, visit_states
from torch import Tensor

from mesalm.model.chunk_states import CHUNK, gate_floor
from mesalm.model.operator_mesa import MesaReport, mesa_attention

# log gamma: no forgetting, rounding of it, long and short memory, both sides of where a factor counts as nothing
FORGET = (0.0, -1e-8, -1e-3, -0.05, -0.7, -8.0, -45.0, -59.9, -60.1, -100.0, -699.0, -745.2, -1e30, -torch.inf)
BETA = (0.0, 1e-8, 0.3, 0.99, 1.0)
PRECISIONS = (
    *((torch.float32, 10.0**-n) for n in range(2, 7)),
    *((torch.float64, 10.0**-n) for n in range(2, 9)),
)
ROUNDING = 8.0
"""Units of rounding, times the condition number, that a solve in a precision may add to its tolerance."""


class Drawn(NamedTuple):
    """Say what a call is made from; forget and beta: the values that the gates of its tokens take."""

    B: int
    T: int
    G: int
    R: int
    K: int
    V: int
    keys: str
    key_size: float
    zero_keys: float
    zero_queries: float
    query_size: float
    forget: tuple[float, ...]
    beta: tuple[float, ...]
    ridge: tuple[float, float]
    precision: tuple[torch.dtype, float]
    seed: int


DRAWN = st.builds(
    Drawn,
    B=st.integers(0, 2),
    T=st.integers(0, 150),
    G=st.integers(1, 2),
    R=st.integers(1, 3),
    K=st.integers(1, 40),
    V=st.integers(1, 40),
    keys=st.sampled_from(("iid", "correlated", "nearly identical", "repeated")),
    key_size=st.sampled_from((1.0, 1e-3, 10.0)),
    zero_keys=st.sampled_from((0.0, 0.1, 1.0)),
    zero_queries=st.sampled_from((0.0, 0.1, 1.0)),
    query_size=st.sampled_from((1.0, 1e-6, 1e3)),
    forget=st.lists(st.sampled_from(FORGET), min_size=1, max_size=3).map(tuple),
    beta=st.lists(st.sampled_from(BETA), min_size=1, max_size=3).map(tuple),
    ridge=st.sampled_from(((1.0, 1.0), (0.01, 0.01), (10.0, 10.0), (0.01, 10.0))),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 2**20),
)
# A chunk over which the state all but vanishes, with no gate small enough to be a restart.
FADING = Drawn(1, 70, 1, 1, 2, 1, "iid", 1.0, 0.0, 0.0, 1.0, (-45.0,), (0.3,), (1.0, 1.0), (torch.float32, 1e-2), 0)
EXAMPLES = pytest.mark.parametrize("examples", [100, pytest.param(3000, marks=pytest.mark.slow)])


def try_drawn(check: Callable[..., None], examples: int, *strategies: st.SearchStrategy) -> None:
    """Check a number of drawn calls, the same ones each time."""
    settings(max_examples=examples, deadline=None, derandomize=True)(given(*strategies)(check))()


def make_call(drawn: Drawn, rows: int, *, state: bool = True) -> Operands:
    """Make the operands of a drawn call with `rows` rows of state."""
    B, T, G, K, V = drawn.B, drawn.T, drawn.G, drawn.K, drawn.V
    generator = torch.Generator().manual_seed(drawn.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def choose(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[(uniform(B, T, G) * len(values)).long()]

    key = drawn.key_size * make_keys(drawn.keys, B, T, G, K, generator)
    key = key.masked_fill(uniform(B, T, G, 1) < drawn.zero_keys, 0.0)
    query = drawn.query_size * normal(B, T, G * drawn.R, K)
    query = query.masked_fill(uniform(B, T, G * drawn.R, 1) < drawn.zero_queries, 0.0)
    low, high = drawn.ridge
    ridge = low * (high / low) ** uniform(G, K)
    root = normal(rows, G, K, max(1, K // 2)) / K**0.5
    states = (single(root @ root.mT), single(normal(rows, G, K, V))) if state else None
    tokens = (query, key, normal(B, T, G, V), choose(drawn.forget), choose(drawn.beta), ridge)
    return Operands(tuple(single(x) for x in tokens), states, None)


def promise(operands: Operands, dtype: torch.dtype, tolerance: float) -> Tensor:
    """Bound |error| of each output row `[B, T, H]` by what the tolerance promises of x, and rounding.

    |G' (x + e) - G' x| <= |G| |e| with |e| <= tolerance |x|. Rounding adds to e its unit times the condition number,
    and to the sums in G their unit times the sizes of what was summed; factors below exp(gate_floor) count as nothing.
    """
    query, key, _, _, _, ridge = operands.tokens
    B, T, H, _ = query.shape
    if B * T == 0:
        return query.new_zeros(B, T, H)
    grams, crosses = (torch.stack(states, 1) for states in zip(*visit_states(operands), strict=True))
    size, whole = summed_sizes(operands)
    by_head = query.unflatten(2, (key.shape[2], -1)).mT
    x = torch.linalg.solve(grams + torch.diag_embed(ridge), by_head).norm(dim=-2)  # [B, T, G, R]
    largest = torch.linalg.matrix_norm(grams) + ridge.amax(-1)
    units = rounding_units(operands, dtype)
    allowed = tolerance * torch.linalg.matrix_norm(crosses, ord=2)
    allowed += units * largest / ridge.amin(-1) * size + math.exp(gate_floor(dtype)) * whole
    return (allowed.unsqueeze(-1) * x).flatten(2) + 1e3 * torch.finfo(dtype).tiny


def rounding_units(call: Operands, dtype: torch.dtype) -> float:
    """Give the relative rounding of a state in a precision.

    The decay between two tokens is the exponential of a difference of sums of log gates, which are float64 in either
    precision: it is known to the unit of float64 times the size of these sums, in which a restart counts for 701.
    """
    sums = call.tokens[3].clamp(min=gate_floor(torch.float64) - 1.0).sum(1).abs()
    largest = float(sums.amax()) if sums.numel() else 0.0
    return ROUNDING * torch.finfo(dtype).eps + 2 * torch.finfo(torch.float64).eps * largest


def summed_sizes(operands: Operands) -> tuple[Tensor, Tensor]:
    """Sum the sizes of what G_t is made of, with its decay and without, `[B, T, G]` each."""
    _, key, value, log_forget, beta, _ = operands.tokens
    written = beta * key.norm(dim=-1) * value.norm(dim=-1)
    sizes: list[tuple[Tensor, Tensor]] = []
    for row, (a, b) in enumerate(itertools.pairwise(operands.bounds or (0, key.shape[1]))):
        size = torch.zeros_like(written[:, 0])
        if operands.state is not None:
            start = torch.linalg.matrix_norm(operands.state[1])
            size = start if operands.bounds is None else start[row : row + 1]
        whole = size
        for t in range(a, b):
            size, whole = log_forget[:, t].exp() * size + written[:, t], whole + written[:, t]
            sizes.append((size, whole))
    decayed, plain = (torch.stack(column, 1) for column in zip(*sizes, strict=True))
    return decayed, plain


def assert_within(got: Tensor, wanted: Tensor, limit: Tensor) -> None:
    assert got.shape == wanted.shape
    assert bool(torch.isfinite(got).all())
    error = (got.double() - wanted.double()).norm(dim=-1)
    over = error > limit
    assert not bool(over.any()), (over.nonzero()[0].tolist(), float(error[over][0]), float(limit[over][0]))


def outputs(call: Operands, dtype: torch.dtype, tolerance: float, backend: str = "torch") -> tuple[Tensor, ...]:
    """Return output and last states of a call in a precision."""
    state = None if call.state is None else (call.state[0].to(dtype), call.state[1].to(dtype))
    cast = Operands(tuple(x.to(dtype) for x in call.tokens), state, call.bounds)
    return call_operator(cast, backend=backend, tolerance=tolerance)


def check_promise(drawn: Drawn, state: bool) -> None:
    """The output keeps the tolerance, and every gradient is finite."""
    dtype, tolerance = drawn.precision
    call = make_call(drawn, drawn.B, state=state)
    wanted, limit = outputs(call, torch.float64, tolerance, "exact")[0], promise(call, dtype, tolerance)
    assert_within(outputs(call, dtype, tolerance)[0], wanted, limit)
    if drawn.B * drawn.T:
        found = attend(call, "torch", dtype, tolerance)
        assert_within(found["output"], wanted, limit)
        assert not [name for name, x in found.items() if not bool(torch.isfinite(x).all())]


def check_split(drawn: Drawn, where: float) -> None:
    """Two calls that hand on the state give what one call gives."""
    dtype, tolerance = drawn.precision
    call, cut = make_call(drawn, drawn.B), round(where * drawn.T)
    limit = promise(call, dtype, tolerance)
    whole = outputs(call, dtype, tolerance)
    first = Operands((*(x[:, :cut] for x in call.tokens[:5]), call.tokens[5]), call.state, None)
    head, gram, cross = outputs(first, dtype, tolerance)
    rest = Operands((*(x[:, cut:] for x in call.tokens[:5]), call.tokens[5]), (gram, cross), None)
    tail, *states = outputs(rest, dtype, tolerance)
    assert_within(torch.cat((head, tail), 1), whole[0], 2 * limit)
    for got, wanted in zip(states, whole[1:], strict=True):
        assert_same_state(got, wanted, call, dtype)


def assert_same_state(got: Tensor, wanted: Tensor, call: Operands, dtype: torch.dtype) -> None:
    """Assert that two states differ by rounding only: they are sums of the same numbers in different order."""
    _, key, value, _, beta, _ = call.tokens
    assert call.state is not None
    written = (beta * key.norm(dim=-1) * (key.norm(dim=-1) + value.norm(dim=-1))).norm()
    size = float(written + call.state[0].norm() + call.state[1].norm() + wanted.norm())
    assert got.shape == wanted.shape
    assert float((got - wanted).norm()) <= rounding_units(call, dtype) * size


def check_packed(drawn: Drawn, cuts: tuple[float, ...], state: bool) -> None:
    """Sequences packed into one row give what they give alone."""
    dtype, tolerance = drawn.precision
    drawn = drawn._replace(B=1)
    bounds = (0, *sorted(round(cut * drawn.T) for cut in cuts), drawn.T)
    call = make_call(drawn, len(bounds) - 1, state=state)._replace(bounds=bounds)
    limit = promise(call, dtype, tolerance)
    packed = outputs(call, dtype, tolerance)
    alone = [outputs(piece, dtype, tolerance) for piece in call.sequences()]
    exact = [outputs(piece, torch.float64, tolerance, "exact")[0] for piece in call.sequences()]
    assert_within(packed[0], torch.cat(exact, 1), limit)
    assert_within(packed[0], torch.cat([part[0] for part in alone], 1), 2 * limit)
    for i, got in enumerate(packed[1:], 1):
        wanted = torch.cat([part[i] for part in alone])
        assert_same_state(got, wanted, call, dtype)


SHARE = st.floats(0.0, 1.0)
CUTS = st.lists(SHARE, max_size=5).map(tuple)


@EXAMPLES
def test_every_call_keeps_its_promise(examples: int) -> None:
    check_promise(FADING, state=True)
    try_drawn(check_promise, examples, DRAWN, st.booleans())


@EXAMPLES
def test_a_split_sequence_equals_the_whole(examples: int) -> None:
    try_drawn(check_split, examples, DRAWN, SHARE)


@EXAMPLES
def test_packed_sequences_equal_separate_ones(examples: int) -> None:
    try_drawn(check_packed, examples, DRAWN, CUTS, st.booleans())


FUZZ_CALLS = 20
FUZZ_TOKENS = 50_000  # each, a million in all


def draw_long(generator: random.Random) -> Drawn:
    """Draw a long call, gates of any size among those of `FORGET`."""
    forget = [generator.choice((generator.choice(FORGET), -(10 ** generator.uniform(-4, 2)))) for _ in range(3)]
    precisions = [*PRECISIONS, (torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.bfloat16, 1e-4)]
    return Drawn(
        B=generator.randint(1, 3),
        T=generator.choice((generator.randint(1, 300), generator.randint(300, 5000))),
        G=generator.randint(1, 2),
        R=generator.randint(1, 2),
        K=generator.choice((1, 3, 8, 16, 32, 64)),
        V=generator.choice((1, 5, 16, 64)),
        keys=generator.choice(("iid", "correlated", "nearly identical", "repeated")),
        key_size=generator.choice((1.0, 1.0, 1e-3, 10.0)),
        zero_keys=generator.choice((0.0, 0.1)),
        zero_queries=generator.choice((0.0, 0.1)),
        query_size=generator.choice((1.0, 1e-6, 1e3)),
        forget=tuple(forget[: generator.randint(1, 3)]),
        beta=tuple(generator.choice((*BETA, generator.random())) for _ in range(2)),
        ridge=generator.choice(((1.0, 1.0), (0.01, 0.01), (10.0, 10.0), (0.01, 10.0))),
        precision=generator.choice(precisions),
        seed=generator.randrange(2**20),
    )


def largest_condition(call: Operands) -> Tensor:
    """Bound the condition numbers of H_t + ridge from above, the largest of each chunk: `[B, N, G]`."""
    _, key, _, log_forget, beta, ridge = (x.double() for x in call.tokens)
    written, gamma = beta * key.square().sum(-1), log_forget.exp()
    size = torch.zeros_like(written[:, 0])
    if call.state is not None:
        size = torch.linalg.matrix_norm(call.state[0].double())
    sizes = []
    for t in range(key.shape[1]):
        size = gamma[:, t] * size + written[:, t]
        sizes.append(size)
    by_chunk = [torch.stack(sizes[t : t + CHUNK], -1).amax(-1) for t in range(0, len(sizes), CHUNK)]
    return (torch.stack(by_chunk, 1) + ridge.amax(-1)) / ridge.amin(-1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FUZZ_CALLS))
def test_a_million_tokens_of_fuzz(seed: int) -> None:
    """Outputs and gradients are finite; what did not converge asked for more than the rounding of its dtype allows."""
    generator, tokens = random.Random(seed), 0
    while tokens < FUZZ_TOKENS:
        drawn = draw_long(generator)
        dtype, tolerance = drawn.precision
        call = make_call(drawn, drawn.B, state=dtype != torch.bfloat16 and generator.random() < 0.5)
        found = attend(call, "torch", dtype, tolerance, scale=10 ** generator.uniform(-9, 0))
        assert not [name for name, x in found.items() if not bool(torch.isfinite(x).all())], drawn
        state = None if call.state is None else (call.state[0].to(dtype), call.state[1].to(dtype))
        cast = Operands(tuple(x.to(dtype) for x in call.tokens), state, None)
        report: MesaReport = mesa_attention(*cast.tokens, initial_state=state, tolerance=tolerance, return_report=True)[
            -1
        ]
        assert report.residual is not None
        assert report.converged is not None
        unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        floor = (ROUNDING * unit * largest_condition(cast)).repeat_interleave(drawn.R, 2)
        explained = (report.residual <= floor) & (tolerance <= floor)
        assert bool((report.converged | explained).all()), drawn
        tokens += drawn.B * drawn.T

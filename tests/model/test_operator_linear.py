"""Compare gated linear attention and the gated delta rule in chunks with their recurrences."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mesalm.model.operator_linear import delta_rule, linear_attention
from mesalm.model.operator_mesa import mesa_attention

Attention = Callable[..., object]


@pytest.fixture(params=[linear_attention, delta_rule], ids=["linear", "delta"])
def attend(request: pytest.FixtureRequest) -> Attention:
    """Give each operator in turn."""
    return request.param


def make_inputs(T: int, gates: str, B: int = 2, H: int = 4, G: int = 2, rows: int | None = None) -> list[Tensor]:
    """Make query, key of length 1, value, log_forget, input_gate and state in float64."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    chance = torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    log_forget = {
        "none": 0 * chance,
        "mild": -0.1 * chance,
        "strong": -3.0 * chance,
        "restart": (-0.1 * chance).masked_fill(chance < 0.1, -torch.inf),
        "every token": torch.full_like(chance, -torch.inf),
        "very negative": torch.where(chance < 0.2, -1e30, -200.0 * (chance > 0.8)),
    }[gates]
    gate = torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    gate[:, ::5], gate[:, 1::5] = 0.0, 1.0
    key = torch.nn.functional.normalize(normal(B, T, G, 3), dim=-1)
    made = [normal(B, T, H, 3), key, normal(B, T, G, 5), log_forget, gate]
    return [x.requires_grad_() for x in (*made, normal(rows or B, G, 3, 5))]


def run(attend: Attention, inputs: list[Tensor], backend: str, **options: object) -> list[Tensor]:
    """Return output, state, and the gradients of a fixed random function of both."""
    output, state = attend(*inputs[:5], initial_state=inputs[5], return_state=True, backend=backend, **options)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (output, state)]
    total = (weights[0] * output).sum() + (weights[1] * state).sum()
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    pairs = zip(inputs, gradients, strict=True)
    return [output, state, *(torch.zeros_like(x) if g is None else g for x, g in pairs)]


def assert_close(got: list[Tensor], wanted: list[Tensor], accuracy: float = 1e-11) -> None:
    largest = max(float(x.detach().norm()) for x in wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape
        assert float((a - b).detach().norm()) <= accuracy * (1e-12 + largest), i


@pytest.mark.parametrize("gates", ["none", "mild", "strong", "restart", "every token", "very negative"])
@pytest.mark.parametrize("T", [0, 1, 2, 63, 64, 65, 200])
def test_chunked_equals_recurrence(attend: Attention, gates: str, T: int) -> None:
    inputs = make_inputs(T, gates)
    got = run(attend, inputs, "torch")
    assert_close(got, run(attend, inputs, "exact"))
    assert bool((got[5][torch.isinf(inputs[3])] == 0).all())
    assert got[0].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("T", [2, 16, 50, 64])
def test_short_sequences_without_gates_are_the_chunked_ones_within_rounding(T: int, dtype: torch.dtype) -> None:
    tokens = [x.detach().to(dtype).requires_grad_() for x in make_inputs(T, "none")[:3]]

    def passed(backend: str, inputs: list[Tensor]) -> list[Tensor]:
        output = linear_attention(*inputs, backend=backend)
        assert isinstance(output, Tensor)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
        return [output, *torch.autograd.grad(output, inputs, weights)]

    short, chunked = (passed(backend, tokens) for backend in ("auto", "torch"))
    exact = passed("exact", [x.detach().double().requires_grad_() for x in tokens])
    rounding = 20 * torch.finfo(dtype).eps  # sums of at most 64 terms, in another order
    assert_close(short, chunked, rounding)
    assert_close(short, exact, rounding)
    ways = [type(each[0].grad_fn).__name__ for each in (short, chunked)]
    assert ["linear_forward" in way for way in ways] == [False, True]
    assert short[0].is_contiguous()


@pytest.mark.parametrize("bounds", [[0, 130], [0, 0, 1, 30, 64, 129, 130, 130]])
@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_packed_sequences_equal_separate_ones(attend: Attention, bounds: list[int], backend: str) -> None:
    inputs = make_inputs(130, "mild", B=1, rows=len(bounds) - 1)
    got = run(attend, inputs, backend, cu_seqlens=torch.tensor(bounds))
    parts, states = [], []
    for s, (a, b) in enumerate(itertools.pairwise(bounds)):
        output, state = attend(
            *[x[:, a:b] for x in inputs[:5]],
            initial_state=inputs[5][s : s + 1],
            return_state=True,
            backend="exact",
        )
        parts.append(output)
        states.append(state)
    assert_close(got[:2], [torch.cat(parts, 1), torch.cat(states)])
    stateless = attend(*inputs[:5], cu_seqlens=torch.tensor(bounds), backend=backend)
    zeros = torch.zeros_like(inputs[5])
    padded = attend(*inputs[:5], initial_state=zeros, cu_seqlens=torch.tensor(bounds))
    assert_close([stateless], [padded])


@pytest.mark.parametrize("at", [1, 64, 100])
def test_split_equals_whole(attend: Attention, at: int) -> None:
    *tokens, state = (x.detach() for x in make_inputs(130, "restart"))
    whole, last = attend(*tokens, initial_state=state, return_state=True)
    first, middle = attend(*[x[:, :at] for x in tokens], initial_state=state, return_state=True)
    second, end = attend(*[x[:, at:] for x in tokens], initial_state=middle, return_state=True)
    assert_close([torch.cat([first, second], 1), end], [whole, last])


def test_is_the_limit_of_mesa_for_a_large_ridge() -> None:
    inputs = [x.detach() for x in make_inputs(130, "mild")][:5]
    mesa = 1e10 * mesa_attention(*inputs, 1e10)
    assert_close([mesa], [linear_attention(*inputs)], 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "exact"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_dtypes_and_upstream_scales(attend: Attention, dtype: torch.dtype, backend: str, scale: float) -> None:
    if dtype == torch.float16 and scale < 1:
        pytest.skip("float16 cannot hold such a gradient")
    inputs = [x.detach().to(dtype).requires_grad_() for x in make_inputs(130, "restart")[:5]]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    output, state = attend(*inputs, return_state=True, backend=backend)
    wide = attend(*doubles, backend="exact")
    assert output.dtype == dtype
    assert state.dtype == torch.float32
    accuracy = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert_close([output.double()], [wide], accuracy)
    weight = scale * torch.randn(wide.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = torch.autograd.grad(output, inputs, weight)
    wanted = torch.autograd.grad(wide, doubles, weight.double())
    for a, b in zip(got, wanted, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < accuracy


def test_autocast_does_not_lower_the_states(attend: Attention) -> None:
    inputs = [x.detach().float() for x in make_inputs(130, "mild")][:5]
    wanted = attend(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(*inputs), wanted)


def test_delta_rule_is_the_equation_of_its_source() -> None:
    query, key, value, log_forget, gate, state = (x.detach() for x in make_inputs(70, "restart", H=2))
    got = delta_rule(query, key, value, log_forget, gate, initial_state=state, return_state=True)
    S, outputs = state.mT, []
    for t in range(70):
        k, v = key[:, t].unsqueeze(-1), value[:, t].unsqueeze(-1)
        gamma, beta = log_forget[:, t, :, None, None].exp(), gate[:, t, :, None, None]
        # with values in the rows, as the paper has it
        S = gamma * S @ (torch.eye(3) - beta * k @ k.mT) + beta * v @ k.mT
        outputs.append((S @ query[:, t].unsqueeze(-1)).squeeze(-1))
    assert_close(list(got), [torch.stack(outputs, 1), S.mT])


def test_delta_rule_recalls_the_last_value_of_a_key() -> None:
    keys, values = torch.eye(3).expand(1, 1, 3, 3).transpose(1, 2), torch.randn(1, 6, 1, 5)
    twice = torch.cat((keys, keys), 1)
    state = delta_rule(twice, twice, values, return_state=True)[1]
    torch.testing.assert_close(state[0, 0], values[0, 3:, 0])

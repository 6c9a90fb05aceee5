"""Run what only larger heads reach in the interpreter: several tiles of a state, a factor, a value; and the way back
to conjugate gradients of a problem whose factor does not exist."""

from __future__ import annotations

import pytest
import torch
from operator_cases import OUTPUTS, Case, Operands, attend, make_operands, relative_error
from torch import Tensor

from mesa_kernels import launch
from mesa_kernels.price import GRADIENTS, HALF, PLAN, SERIES
from mesalm import mesa_attention
from mesalm.model import mesa_chunked

# as in test_kernels_operator: output and gradients lean on x, known to 1e-4, keys and gates on products of two such
OUTPUT, GRADIENT = 1e-4, 5e-4
CASES = [
    (Case("iid", "0.99", "none", "0.1", "random", 48, 48, "1/1", 66, "state"), SERIES),
    (Case("correlated", "0.97", "1%", "1", "random", 80, 80, "1/1", 40, "one row"), SERIES),
    (Case("iid", "0.5", "none", "1", "random", 128, 128, "1/1", 16, "state"), GRADIENTS),
    (Case("iid", "0.999", "none", "0.1", "random", 64, 96, "1/1", 20, "state"), SERIES),
]


@pytest.fixture
def plans(kernels: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Keep the plans of all solves, `[P, PLAN]` each."""
    kept: list[Tensor] = []
    plain = launch.fresh

    def fresh(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        made = plain(like, *shape, dtype=dtype)
        if dtype == torch.int32 and shape[1:] == (PLAN,):
            kept.append(made)
        return made

    monkeypatch.setattr(launch, "fresh", fresh)
    return kept


def ways(plans: list[Tensor]) -> list[set[int]]:
    """Name the ways that each solve took."""
    return [set(plan[:, 0].tolist()) for plan in plans]


@pytest.mark.parametrize(("case", "way"), [pytest.param(*CASES[0], marks=pytest.mark.card), *CASES[1:]], ids=str)
def test_several_tiles(case: Case, way: int, kernels: str, plans: list[Tensor]) -> None:
    operands = make_operands(case)
    exact = attend(operands, "exact", torch.float64)
    got = attend(operands, "triton", torch.float32, device=kernels)
    for name, wanted in exact.items():
        assert relative_error(got[name], wanted) <= (OUTPUT if name in OUTPUTS else GRADIENT), name
    assert ways(plans) == [{way}] * 2


@pytest.mark.card
def test_several_tiles_of_16_bits(kernels: str, plans: list[Tensor]) -> None:
    """Forwards and backwards with float16 operands and their corrections; what is left is the rounding to 11 bits."""
    operands = make_operands(Case("iid", "0.99", "none", "1", "random", 128, 32, "1/1", 16, "one row"))
    tokens = [x.half().double() if place < 3 else x for place, x in enumerate(operands.tokens)]
    results = []
    for backend, device in (("exact", "cpu"), ("triton", kernels)):
        dtypes = [torch.float64] * 6 if backend == "exact" else [torch.float16] * 3 + [torch.float32] * 3
        leaves = [x.detach().to(device, dtype).requires_grad_() for x, dtype in zip(tokens, dtypes, strict=True)]
        output = mesa_attention(*leaves, backend=backend)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))])
    for place, (wanted, got) in enumerate(zip(*results, strict=True)):
        assert relative_error(got.double().cpu(), wanted) <= 6e-4, place
    assert ways(plans) == [{HALF}] * 2


def test_a_problem_without_a_factor_is_solved_by_conjugate_gradients(
    kernels: str, plans: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is so indefinite that a chunk's start has no factor, and the first token writes so much that every
    token's own system is positive definite: the plan changes on the device, forwards, and backwards by the mark that
    a missing factor bears where factors are kept."""
    monkeypatch.setattr(mesa_chunked, "KEEP_FACTORS", True)
    operands = make_operands(Case("iid", "0.999", "none", "1", "1", 16, 8, "1/1", 66, "state"))
    query, key, value, log_forget, beta, ridge = operands.tokens
    gram, cross = operands.state
    ridge = torch.ones_like(ridge)
    axis = torch.eye(16, dtype=torch.float64)[0]
    key[:, 0] = 3.0 * axis
    state = (gram - 4.0 * torch.outer(axis, axis) - gram[0, 0, 0, 0] * torch.outer(axis, axis), cross)
    broken = Operands((query, key, value, log_forget, beta, ridge), state, None)
    exact = attend(broken, "exact", torch.float64)
    got = attend(broken, "triton", torch.float32, device=kernels)
    for name, wanted in exact.items():
        assert relative_error(got[name], wanted) <= (OUTPUT if name in OUTPUTS else GRADIENT), name
    assert [plan[:, 0].tolist() for plan in plans] == [[GRADIENTS, SERIES]] * 2

"""Hold the solver on chip to dense float64 solves, row by row: solutions, adjoints, and what it leaves to float32."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from operator_cases import Case, Operands, make_operands, visit_states
from torch import Tensor

from mesa_kernels import launch, solver

ROUNDING = 2e-6
"""What two float16 halves and float32 sums leave of a right-hand side, where little cancels in it."""


class Solved(NamedTuple):
    """Hold solutions and adjoints `[B, T, H, K]` in float64, the output, and per solve steps and marks."""

    x: Tensor
    y: Tensor
    output: Tensor
    steps: list[Tensor]
    marks: list[Tensor]


@pytest.fixture
def run(kernels: str):
    """Give a function that makes the solves of both passes on 16-bit tokens and keeps what they make."""

    def go(
        operands: Operands, upstream: Tensor, dtype: torch.dtype, tolerance: float, max_steps: int = 1000, **first: int
    ) -> Solved:
        tokens = [x.to(kernels, dtype if place < 3 else torch.float32) for place, x in enumerate(operands.tokens)]
        B, G, K, V = tokens[0].shape[0], tokens[1].shape[2], tokens[1].shape[3], tokens[2].shape[3]
        state = operands.state or (torch.zeros(B, G, K, K), torch.zeros(B, G, K, V))
        tokens += [x.to(kernels, torch.float32) for x in state]
        made = launch.prepare(launch.Call(*tokens))
        output, ends = (fill(upstream.to(kernels, dtype)) for fill in (torch.empty_like, torch.clone))
        x, steps, marks = launch.solve(made, output, tolerance, max_steps, adjoint=False, **first)
        y, back, again = launch.solve(made, ends, tolerance, max_steps, adjoint=True, **first)
        assert marks is not None
        assert again is not None
        return Solved(
            x.double().cpu(), y.double().cpu(), output.double().cpu(), [steps.cpu(), back.cpu()], [marks, again]
        )

    return go


def cut(operands: Operands, dtype: torch.dtype) -> Operands:
    """Round the tokens to 16 bits, so that the oracle sees what the kernels see."""
    tokens = tuple(x.to(dtype).double() if place < 3 else x for place, x in enumerate(operands.tokens))
    return operands._replace(tokens=tokens)


def solve_dense(operands: Operands, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give x, y and the output: every token's system formed and solved in float64."""
    query, ridge = operands.tokens[0], operands.tokens[5]
    R = query.shape[2] // ridge.shape[0]
    made = []
    for t, (gram, cross) in enumerate(visit_states(operands)):
        system = (gram + torch.diag_embed(ridge)).repeat_interleave(R, 1)
        cross = cross.repeat_interleave(R, 1)
        rhs = torch.stack((query[:, t], (cross @ upstream[:, t].unsqueeze(-1)).squeeze(-1)), -1)
        x = torch.linalg.solve(system, rhs)
        made.append((x[..., 0], x[..., 1], (cross.mT @ x[..., :1]).squeeze(-1)))
    x, y, output = (torch.stack(rows, 1) for rows in zip(*made, strict=True))
    return x, y, output


def largest_error(got: Tensor, wanted: Tensor) -> float:
    """Give the largest |got - wanted| / |wanted| of a row; rows of zeros must be met."""
    assert (got[wanted.norm(dim=-1) == 0.0] == 0.0).all()
    return float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-300)).max())


HARD = [
    (Case("iid", "0.99", "none", "0.1", "random", 32, 24, "1/1", 66, "state"), torch.bfloat16, 1e-2),
    (Case("correlated", "1", "none", "1", "1", 24, 8, "2/1", 33, "state"), torch.float16, 1e-4),
    (Case("nearly identical", "0.999", "none", "0.1", "random", 16, 40, "1/1", 35, "one row"), torch.bfloat16, 1e-3),
    (Case("repeated", "1", "5%", "spread", "zeros and ones", 40, 16, "1/1", 31, "one row"), torch.float16, 1e-4),
    (Case("correlated", "0.9", "1%", "spread", "random", 20, 8, "1/1", 64, "one row"), torch.bfloat16, 1e-5),
    (Case("iid", "by token", "every", "1", "random", 8, 8, "1/1", 9, "state"), torch.float16, 1e-6),
    (Case("iid", "1", "none", "0.1", "1", 17, 33, "3/1", 1, "state"), torch.bfloat16, 1e-4),
    (Case("correlated", "0.97", "none", "1", "random", 128, 130, "1/1", 12, "state"), torch.bfloat16, 1e-4),
]


@pytest.mark.parametrize(("case", "dtype", "tolerance"), HARD, ids=str)
def test_every_row_is_within_the_tolerance(case: Case, dtype: torch.dtype, tolerance: float, run) -> None:
    """Upstream gradients fall from 1 to 1e-9 along the tokens, and one row of each kind is zero."""
    operands = cut(make_operands(case), dtype)
    T = case.T
    sizes = 10.0 ** (-9.0 * torch.arange(T) / T) if dtype == torch.bfloat16 else torch.ones(T)
    upstream = torch.randn((*operands.tokens[0].shape[:3], case.V), generator=torch.Generator().manual_seed(1))
    upstream = (upstream * sizes[:, None, None]).to(dtype).double()
    if T > 1:
        operands.tokens[0][:, T // 3] = 0.0
        upstream[:, T // 2] = 0.0
    got = run(operands, upstream, dtype, tolerance)
    x, y, output = solve_dense(operands, upstream)
    assert largest_error(got.x, x) <= tolerance
    assert largest_error(got.y, y) <= tolerance + 30 * ROUNDING
    exact = torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off
    assert float((got.output - output).norm() / output.norm()) <= exact + 3 * tolerance
    if tolerance >= 1e-4:
        assert not any(bool(marks.any()) for marks in got.marks)  # so much is certified on chip
    assert all(int(steps.max()) <= solver.STEPS for steps in got.steps)


def test_what_is_not_certified_on_chip_is_solved_in_float32(run) -> None:
    """Eight products cannot solve a chunk of correlated keys; the chunk before, where nothing is written, they can."""
    case = Case("correlated", "1", "none", "0.1", "1", 16, 8, "2/1", 80, "one row")
    operands = cut(make_operands(case), torch.float16)
    operands.tokens[4][:, :64] = 0.0  # nothing is written: the systems are the ridge alone
    upstream = torch.randn(1, 80, 2, 8, generator=torch.Generator().manual_seed(1)).half().double()
    got = run(operands, upstream, torch.float16, 1e-4, on_chip_steps=8)
    x, y, output = solve_dense(operands, upstream)
    assert [marks.tolist() for marks in got.marks] == [[[0, 0], [1, 1]]] * 2
    assert largest_error(got.x, x) <= 1e-4
    assert largest_error(got.y, y) <= 1e-4 + ROUNDING
    assert float((got.output - output).norm() / output.norm()) <= 6e-4


# NumPy, which interprets the kernels, warns of every overflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_beyond_float16_are_solved_in_float32(run) -> None:
    """Keys of 1e3 and values of 1e6 (bfloat16 holds them) overflow float16 on the way: marked, solved, read again."""
    case = Case("iid", "1", "none", "1", "1", 16, 8, "1/1", 40, "one row")
    operands = make_operands(case)
    operands.tokens[1].mul_(1e3)
    operands.tokens[2].mul_(1e6)
    operands = cut(operands, torch.bfloat16)
    upstream = torch.ones(1, 40, 1, 8).double()
    got = run(operands, upstream, torch.bfloat16, 1e-3)
    x, _, output = solve_dense(operands, upstream)
    assert torch.isfinite(got.x).all()
    assert torch.isfinite(got.y).all()
    assert largest_error(got.x, x) <= 1e-3
    assert float((got.output - output).norm() / output.norm()) <= 1e-2


# NumPy warns of every number that is none
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_that_is_no_number_stays_one_and_spoils_no_other(run) -> None:
    case = Case("iid", "0.9", "none", "1", "random", 16, 8, "1/1", 40, "one row")
    operands = cut(make_operands(case), torch.bfloat16)
    operands.tokens[0][:, 7] = torch.nan
    upstream = torch.ones(1, 40, 1, 8).double()
    got = run(operands, upstream, torch.bfloat16, 1e-3)
    broken = torch.arange(40) == 7
    assert got.output[:, broken].isnan().all()
    assert got.x[:, ~broken].isfinite().all()
    assert got.marks[0].tolist() == [[1]]


def test_steps_do_not_depend_on_the_size_of_right_hand_sides(run) -> None:
    """Powers of two round nothing, so that only a guard with a size of its own can show."""
    case = Case("correlated", "0.99", "none", "0.1", "random", 16, 8, "1/1", 66, "one row")
    operands = cut(make_operands(case), torch.bfloat16)
    upstream = torch.randn(1, 66, 1, 8, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    whole = run(operands, upstream, torch.bfloat16, 1e-3)
    query, *others = operands.tokens
    small = operands._replace(tokens=(query * 2.0**-30, *others))
    tiny = run(small, upstream * 2.0**-30, torch.bfloat16, 1e-3)
    assert torch.equal(tiny.x * 2.0**30, whole.x)
    assert torch.equal(tiny.y * 2.0**30, whole.y)
    assert all(torch.equal(one, other) for one, other in zip(whole.steps, tiny.steps, strict=True))

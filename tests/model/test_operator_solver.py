"""Check what the solver promises: tolerance, report, stopping, and work only where it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesalm.model import mesa_solver
from mesalm.model.chunk_states import from_chunks, to_chunks
from mesalm.model.mesa_backends import run_backend
from mesalm.model.mesa_cg import REFINEMENTS, conjugate_gradients
from mesalm.model.mesa_exact import mesa_exact
from mesalm.model.mesa_problems import Problems, cut_problems, problem_length
from mesalm.model.mesa_report import relative_residual
from mesalm.model.mesa_solver import METHODS, Solving
from mesalm.model.operator_mesa import mesa_attention
from mesalm.model.operator_records import Operands, Results


def make_inputs(T: int, keys: str, gamma: float, ridge: float, H: int = 2, G: int = 2, K: int = 24) -> Operands:
    """Make query, key, value, log_forget, input_gate, ridge and zero states, in float64."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    noise = normal(1, T, G, K)
    if keys == "correlated":
        noise = noise * torch.logspace(0, -2, K, dtype=torch.float64) + 0.3
    elif keys == "repeated":
        noise = noise[:, torch.arange(T) % 4]
    elif keys == "nearly identical":
        noise = noise[:, :1] + 1e-2 * noise
    key = torch.nn.functional.normalize(noise, dim=-1)
    query = torch.nn.functional.normalize(normal(1, T, H, K) + key.repeat_interleave(H // G, 2), dim=-1)
    gates = torch.full((1, T, G), gamma, dtype=torch.float64).log()
    ridges = ridge * (1 + 4 * torch.rand(G, K, generator=generator, dtype=torch.float64))
    states = [torch.zeros(1, G, K, K).double(), torch.zeros(1, G, K, K).double()]
    return Operands(query, key, normal(1, T, G, K), gates, torch.ones_like(gates), ridges, *states)


def solve(inputs: Sequence[Tensor], tolerance: float, max_steps: int, method: str = "auto") -> Results:
    operands = Operands(*inputs)
    solving = Solving(tolerance, max_steps, method, chunk=problem_length(operands.key.shape[-1]))
    return run_backend(operands, solving)[0]


def cut(operands: Operands) -> tuple[Problems, Tensor]:
    """Cut a call into problems and its queries into their right-hand sides."""
    made = cut_problems(operands, operands.query.dtype)
    return made, to_chunks(operands.query, operands.key.shape[2], operands.query.dtype).mul_(made.inverse_root)


class Products(TorchDispatchMode):
    """The number of problems in every batched product made under this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.out:
            self.problems.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def relative_errors(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


HARD = [
    (keys, gamma, ridge)
    for keys in ("iid", "correlated", "repeated", "nearly identical")
    for gamma in (1.0, 0.99, 0.8)
    for ridge in (0.01, 0.25, 10.0)
]


WAYS = [(tolerance, method) for method in METHODS for tolerance in (1e-1, 1e-3, 1e-8)]
PRODUCT = [
    # in a quarter of the product any three levels meet
    pytest.param(*problem, *way, marks=() if (i + j) % 4 == 0 else pytest.mark.slow)
    for i, problem in enumerate(HARD)
    for j, way in enumerate(WAYS)
]


@pytest.mark.parametrize(("keys", "gamma", "ridge", "tolerance", "method"), PRODUCT)
def test_tolerance_is_a_promise(keys: str, gamma: float, ridge: float, tolerance: float, method: str) -> None:
    inputs = make_inputs(200, keys, gamma, ridge)
    exact = mesa_exact(inputs)[3]
    solution = solve(inputs, tolerance, 1000, method).solution
    error = relative_errors(solution, exact)
    assert error <= tolerance
    # Few distinct keys end in a few exact steps; without forgetting the shared factor is exact.
    if tolerance == 1e-1 and keys != "repeated" and (method == "cg" or gamma < 1):
        assert error > 1e-9, "the solver does not use the tolerance"
    if tolerance == 1e-3:
        single = [x.float() for x in inputs]
        wanted = mesa_exact(Operands(*[x.double() for x in single]))[3]
        assert relative_errors(solve(single, tolerance, 1000, method).solution, wanted) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 0.9975])
@pytest.mark.parametrize("distinct", [1, 2])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
@pytest.mark.parametrize("method", ["auto", "cg"])
def test_equal_keys_do_not_cost_the_tolerance(
    dtype: torch.dtype, gamma: float, distinct: int, tolerance: float, method: str
) -> None:
    """Condition numbers are near 6e4 here; a state summed in float32 loses all but two or three digits of x."""
    query, key, value, gates, beta, ridge, *states = make_inputs(640, "iid", gamma, 0.01)
    key = key[:, torch.arange(640) % distinct]
    tokens = [x.to(dtype) for x in (query + key, key, value)]
    single = Operands(*tokens, gates.float(), beta.float(), torch.full_like(ridge, 0.01).float(), *states)
    wanted = mesa_exact(Operands(*(x.double() for x in single)))[3]
    assert relative_errors(solve(single, tolerance, 1000, method).solution, wanted) <= tolerance


@pytest.mark.parametrize(("keys", "gamma", "ridge"), HARD[::2])
def test_adjoint_keeps_the_tolerance(keys: str, gamma: float, ridge: float) -> None:
    gradients = []
    for backend in ("torch", "exact"):
        query, *rest = make_inputs(130, keys, gamma, ridge)
        query.requires_grad_()
        output = mesa_attention(query, *rest[:5], backend=backend, tolerance=1e-5)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
        gradients.append(torch.autograd.grad(output, query, 1e-6 * weight)[0])
    assert relative_errors(*gradients) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_report_is_true(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in make_inputs(130, "correlated", 0.99, 0.25, H=4)]
    solution = solve(inputs, 1e-3, 1000).solution.double()
    _, report = mesa_attention(*inputs[:6], tolerance=1e-3, return_report=True)
    query, key, _, gates, _, ridge = (x.double() for x in inputs[:6])
    gram = torch.zeros(4, 24, 24).double()
    wanted = torch.zeros(1, 3, 4).double()
    for t in range(130):
        k = key[0, t].repeat_interleave(2, 0)
        gram = gates[0, t].exp().repeat_interleave(2)[:, None, None] * gram + k[:, :, None] * k[:, None, :]
        matrix = gram + torch.diag_embed(ridge.repeat_interleave(2, 0))
        q = query[0, t]
        residual = q - (matrix @ solution[0, t].unsqueeze(-1)).squeeze(-1)
        wanted[0, t // 64] = torch.maximum(wanted[0, t // 64], residual.norm(dim=-1) / q.norm(dim=-1))
    assert float(((report.residual - wanted).abs() / wanted).max()) < 1e-4
    assert bool(report.converged.all())
    assert report.backend == "torch"
    assert report.steps.dtype == torch.int32
    assert report.steps.shape == (1, 3, 4)
    assert int(report.steps.min()) >= 1


@pytest.mark.parametrize("T", [0, 1, 70])
def test_report_of_the_exact_back_end(T: int) -> None:
    inputs = make_inputs(T, "iid", 0.99, 0.25)
    _, state, report = mesa_attention(
        *inputs[:6], backend="exact", return_report=True, return_state=True, tolerance=1e-10
    )
    assert state.gram.shape == (1, 2, 24, 24)
    assert report.backend == "exact"
    assert bool((report.steps == 0).all())
    assert bool(report.converged.all())
    assert report.residual.shape == (1, (T + 63) // 64, 2)
    assert bool((report.residual < 1e-12).all())


def test_steps_alone() -> None:
    inputs = make_inputs(130, "correlated", 0.99, 0.25)[:6]
    _, full = mesa_attention(*inputs, return_report=True)
    _, light = mesa_attention(*inputs, return_report="steps")
    assert light.residual is None
    assert light.converged is None
    assert torch.equal(light.steps, full.steps)


@pytest.mark.parametrize("method", METHODS)
def test_method_chooses_the_solver(method: str) -> None:
    inputs = make_inputs(130, "correlated", 0.97, 0.25)
    wanted = solve(inputs, 1e-4, 96, method)
    output, report = mesa_attention(*inputs[:6], method=method, return_report="steps")
    assert report.backend == "torch"
    assert torch.equal(output, wanted.output)
    assert torch.equal(report.steps, wanted.steps)
    others = [solve(inputs, 1e-4, 96, other).steps for other in ("shared", "cg")]
    assert not torch.equal(*others)


def test_method_belongs_to_one_back_end() -> None:
    inputs = make_inputs(130, "correlated", 0.97, 0.25)[:6]
    with pytest.raises(ValueError, match=r"^method is 'cg': must be 'auto' on back end 'exact', or use backend="):
        mesa_attention(*inputs, backend="exact", method="cg")


def test_too_few_steps_are_reported() -> None:
    inputs = make_inputs(130, "correlated", 0.97, 0.25)[:6]
    _, report = mesa_attention(*inputs, max_steps=3, return_report=True)
    assert int(report.steps.max()) == 3
    assert not bool(report.converged.all())
    assert float(report.residual.max()) > 1e-3


@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_strict_makes_a_missed_tolerance_an_error(backend: str) -> None:
    inputs = make_inputs(130, "correlated", 0.97, 0.25)[:6]
    wanted = mesa_attention(*inputs, backend=backend)
    assert torch.equal(mesa_attention(*inputs, backend=backend, strict=True), wanted)
    _, report = mesa_attention(*inputs, backend=backend, strict=True, return_report="steps")
    assert report.residual is None
    if backend == "torch":
        with pytest.raises(ArithmeticError, match=r"tolerance 0.0001 was not reached by \d+ of 6 chunks and heads"):
            mesa_attention(*inputs, max_steps=3, strict=True)


def test_the_report_is_not_the_solvers_own_account() -> None:
    """Solutions of a solver that stops too early, whatever it believes, are found out."""
    inputs = make_inputs(130, "correlated", 0.99, 0.25)
    measured = [relative_residual(solve(inputs, x, 1000).solution, inputs, 1e-4)[1] for x in (1e-4, 0.5)]
    assert bool(measured[0].all())
    assert not bool(measured[1][:, :2].any())  # the third chunk holds two tokens, for which a product or two do


def test_out_of_reach_of_float32_stops_and_says_so() -> None:
    inputs = [x.float() for x in make_inputs(400, "correlated", 1.0, 1e-5)][:6]
    output, report = mesa_attention(*inputs, tolerance=1e-9, return_report=True)
    assert torch.isfinite(output).all()
    assert not bool(report.converged.all())
    assert int(report.steps.max()) <= 4 * 24


def test_float32_is_refined_where_the_recurrence_drifts() -> None:
    """The recurrence believes itself done too early here; restarts from the true residual go on."""
    operands = Operands(*(x.float() for x in make_inputs(400, "correlated", 1.0, 0.01)))
    made, rhs = cut(operands)
    systems = made.systems(rhs.shape[1])

    def residual(refinements: int) -> float:
        x = conjugate_gradients(systems, rhs, 1e-4, 100, refinements=refinements).x
        solution = from_chunks(x * made.inverse_root, 1, 400, 2, torch.float32)
        return float(relative_residual(solution, operands, 1e-4)[0].max())

    assert residual(REFINEMENTS) < 0.5 * residual(0)


def test_zero_and_huge_and_tiny_rows() -> None:
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype) for x in make_inputs(70, "iid", 0.99, 0.25)]
        scale = torch.ones(1, 70, 1, 1, dtype=dtype)
        scale[:, 10], scale[:, 20], scale[:, 30] = 0.0, 1e-30, 1e30
        plain = solve(inputs, 1e-6, 100).solution
        scaled = solve([inputs[0] * scale, *inputs[1:]], 1e-6, 100).solution
        assert bool((scaled[:, 10] == 0).all())
        keep = torch.arange(70) != 10
        assert relative_errors(scaled[:, keep] / scale[:, keep], plain[:, keep].double()) < 1e-5


def test_an_indefinite_state_is_survived_and_reported() -> None:
    inputs = make_inputs(70, "iid", 1.0, 0.25)
    gram = -10.0 * torch.eye(24).double().expand(1, 2, 24, 24)
    _, report = mesa_attention(*inputs[:6], initial_state=(gram, inputs[7]), return_report=True)
    assert not bool(report.converged.all())


def test_a_ridge_that_is_lost_in_rounding_gets_one_line() -> None:
    """A token alone is solved densely, which float32 does not allow here; the exact back end of float64 can."""
    inputs = make_inputs(130, "repeated", 1.0, 1e-7, K=32)
    _, state = mesa_attention(*(x[:, :129].float() for x in inputs[:5]), inputs[5].float(), return_state=True)
    last = [x[:, 129:] for x in inputs[:5]]
    with pytest.raises(torch.linalg.LinAlgError, match=r"^H_t \+ ridge is not positive definite in torch.float32: "):
        mesa_attention(*(x.float() for x in last), inputs[5].float(), initial_state=state)
    assert bool(mesa_attention(*inputs[:6], backend="exact").isfinite().all())


def test_solved_systems_are_dropped() -> None:
    """A head that forgets at once needs few steps; it must not ride along with one that remembers all."""
    inputs = make_inputs(256, "correlated", 1.0, 0.01)
    inputs[3][..., 0] = -3.0
    made, rhs = cut(inputs)
    with Products() as products:
        conjugate_gradients(made.systems(rhs.shape[1]), rhs, 1e-6, 1000)
    assert products.problems[0] == 8
    assert products.problems[-1] <= 4

    *_, together, steps = solve(inputs, 1e-6, 1000, "cg")
    assert int(steps[..., 0].max()) * 2 < int(steps[..., 1].max())
    alone = [x[:, :, 1:] for x in inputs[:5]] + [inputs[5][1:]] + [x[:, 1:] for x in inputs[6:]]
    *_, single, single_steps = solve(alone, 1e-6, 1000, "cg")
    assert relative_errors(together[:, :, 1:], single) < 1e-6
    # The count may differ by a step or two where rounding decides when the limit is met.
    assert int((steps[..., 1:] - single_steps).abs().max()) <= 2


@pytest.mark.parametrize("method", METHODS)
def test_blocks_do_not_change_the_answer(method: str) -> None:
    inputs, solving = make_inputs(896, "correlated", 0.99, 0.25), Solving(1e-8, 1000, method)
    made, rhs = cut(inputs)
    whole, blocks = mesa_solver.solve(made, rhs, solving).x, mesa_solver.solve(made, rhs, solving, block_numbers=1).x
    assert relative_errors(blocks, whole) < 1e-11
    alone = solve([*(x[:, :64] for x in inputs[:5]), *inputs[5:]], 1e-8, 1000, method).solution
    assert relative_errors(alone, solve(inputs, 1e-8, 1000, method).solution[:, :64]) < 1e-11


def test_a_row_is_solved_as_if_it_were_alone() -> None:
    """Also where solutions are corrected, whose products follow from the row's own memory."""
    inputs = [x.float() for x in make_inputs(64, "nearly identical", 1.0, 0.05)]
    rows = [x.repeat(3, *[1] * (x.dim() - 1)) for x in inputs]
    rows[3] += torch.tensor([0.0, -0.001, -0.01])[:, None, None]
    rows[5] = inputs[5]
    whole = solve(rows, 1e-4, 100, "shared").solution
    for row in range(3):
        alone = [*(x[row : row + 1] for x in rows[:5]), inputs[5], *(x[row : row + 1] for x in rows[6:])]
        assert torch.equal(solve(alone, 1e-4, 100, "shared").solution, whole[row : row + 1])

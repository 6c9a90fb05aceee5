"""Check the shared factor and Chebyshev's iteration by themselves, and the choice between ways at its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesalm.model import mesa_backends, mesa_chunked, mesa_solver
from mesalm.model.chunk_states import Decay, from_chunks, read_states, to_chunks
from mesalm.model.mesa_chebyshev import MARGIN, iterate, largest_norm
from mesalm.model.mesa_exact import mesa_exact
from mesalm.model.mesa_problems import Problems, cut_problems
from mesalm.model.mesa_shared import coefficients, freeze_decay, products_needed
from mesalm.model.mesa_solver import Assignment, Solving, assign, steps_of_gradients
from mesalm.model.operator_records import Operands, Results, Upstreams


def gates(*gammas: float, C: int = 64) -> Tensor:
    """Make one chunk a gamma: constant log gates `[P, C]`."""
    return torch.tensor(gammas, dtype=torch.float64).log().unsqueeze(-1).repeat(1, C)


def assigned(
    log_forget: Tensor,
    largest: Tensor | float,
    *,
    size: int = 64,
    heads: int = 1,
    max_steps: int = 256,
    method: str = "auto",
) -> Assignment:
    P, dtype = log_forget.shape[0], torch.float32
    bound = torch.as_tensor(largest, dtype=dtype).expand(P)
    tolerance = torch.full((P,), 1e-4, dtype=torch.float64)
    solving = Solving(1e-4, max_steps, method)
    return assign(freeze_decay(log_forget, dtype), bound, tolerance, size=size, heads=heads, solving=solving)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.97, 1.0, 1.03, 2.0, 20.0])
@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_series_keeps_its_bound_and_wastes_nothing(ratio: float, m: int) -> None:
    """The polynomial's largest relative error on [0, 1] is the bound itself: no polynomial of its degree is better."""
    log_ratio = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    e = coefficients(log_ratio, torch.tensor([m]), torch.float64)[:, 0, 0, 0]
    p = torch.linspace(1e-6, 1.0, 5001, dtype=torch.float64)
    y = 2 * p - 1
    series = sum(e[j] * torch.cos(j * torch.arccos(y.clamp(-1, 1))) for j in range(m))
    wanted = ratio * p / (1 + (ratio - 1) * p)
    error = float((2 * p * series / wanted - 1).abs().max())
    q = abs(math.tanh(math.log(ratio) / 4))
    bound = 2 * q**m / (1 + q ** (2 * m))
    assert error <= bound + 1e-12
    assert error >= 0.999 * bound - 1e-12


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-10])
def test_products_are_as_few_as_the_bound_allows(tolerance: float) -> None:
    reach = torch.linspace(0.01, 6.0, 50, dtype=torch.float64)
    m = products_needed(reach, torch.full_like(reach, tolerance))
    q = torch.tanh(reach / 4)
    assert bool((2 * q**m <= tolerance).all())
    assert bool((2 * q ** (m - 1) > tolerance)[m > 1].all())
    assert products_needed(torch.zeros(1).double(), torch.tensor([tolerance]).double()).tolist() == [1.0]


def test_reference_lies_in_the_middle_of_every_segment() -> None:
    log_forget = gates(0.9, 0.9)
    log_forget[1, 20] = -math.inf
    log_forget[1, 50] = -1e30
    made = freeze_decay(log_forget, torch.float32)
    assert made.restarts[1, [0, 19, 20, 49, 50, 63]].tolist() == [0, 0, 1, 1, 2, 2]
    for row, begin, end in ((0, 0, 63), (1, 0, 19), (1, 20, 49), (1, 50, 63)):
        ends = made.log_ratio[row, [begin, end]]
        assert float(ends.sum()) == pytest.approx(0.0, abs=1e-12)
        assert float(ends[1]) == pytest.approx(-0.5 * (end - begin) * math.log(0.9))
    assert made.reach.tolist() == pytest.approx([-0.5 * 63 * math.log(0.9), -0.5 * 29 * math.log(0.9)])


def test_long_memory_takes_the_factor_and_short_memory_does_not() -> None:
    log_forget = gates(1.0, 0.5, 0.99, 0.8, 0.97)
    found = assigned(log_forget, torch.tensor([500.0, 2.0, 90.0, 4.0, 36.0]))
    assert found.chebyshev.tolist() == [1, 3]
    assert found.direct.tolist() == []
    assert found.shared.tolist() == [4, 2, 0]  # most products first
    assert found.degrees == [7, 4, 1]
    assert found.plain == 3


def test_every_choice_is_its_own() -> None:
    gammas = (1.0, 0.5, 0.99, 0.96, 0.95, 0.94, 0.93, 0.8)
    bounds = torch.tensor([500.0, 2.0, 90.0, 30.0, 25.0, 20.0, 15.0, 4.0])
    together = assigned(gates(*gammas), bounds)
    for i, gamma in enumerate(gammas):
        alone = assigned(gates(gamma), bounds[i])
        assert (len(alone.shared) == 1) == (i in together.shared.tolist())
        if alone.degrees:
            assert alone.degrees[0] == together.degrees[together.shared.tolist().index(i)]


def test_price_crosses_once_along_gamma() -> None:
    """From long to short memory, with the bound that such keys would have, the choice changes once."""
    gammas = torch.linspace(0.5, 0.9999, 200)
    bounds = 1 + 0.5 / (1 - gammas)
    found = assigned(gates(*gammas.tolist()), bounds)
    chosen = torch.zeros(200, dtype=torch.int64)
    chosen[found.shared] = 1
    assert int(chosen.diff().abs().sum()) == 1
    assert chosen[0] == 0
    assert chosen[-1] == 1


def test_edges_of_the_choice() -> None:
    hard = gates(0.99)
    assert assigned(hard, 90.0).degrees == [4]
    assert assigned(hard, 1.0).shared.tolist() == []  # nothing was written: gradients end at once
    assert assigned(hard, 90.0, size=1).shared.tolist() == []  # one dimension: gradients end after one step
    assert assigned(hard, 1e6).shared.tolist() == []  # beyond what float32 can factor
    assert assigned(gates(0.97), 36.0, max_steps=3).degrees == [3]  # neither will do: the better of the two
    assert assigned(gates(0.8), 1e3, method="shared").degrees == [167]
    assert assigned(gates(1e-20), 2.0, method="shared").shared.tolist() == []  # tanh rounds to 1: no series
    assert assigned(gates(1.0, 0.99), 90.0, method="cg").direct.tolist() == [0, 1]
    few, many = (len(assigned(gates(0.95), 8.0, heads=heads).shared) for heads in (1, 16))
    assert few <= many  # query heads share the factor


def test_chebyshev_takes_short_memories_where_rounding_and_steps_allow() -> None:
    forgetful = gates(0.7)
    assert assigned(forgetful, 4.0).chebyshev.tolist() == [0]
    assert assigned(forgetful, 100.0).direct.tolist() == [0]  # rounding would take more than its share of 1e-4
    assert assigned(forgetful, 4.0, max_steps=5).direct.tolist() == [0]
    assert assigned(forgetful, 4.0, method="cg").direct.tolist() == [0]
    assert assigned(gates(1.0, 0.7), 4.0, method="chebyshev").chebyshev.tolist() == [0, 1]
    assert assigned(gates(1.0), 1e3, method="chebyshev").direct.tolist() == [0]


@pytest.mark.parametrize("width", [1e-6, 0.5, 8.0, 300.0])
@pytest.mark.parametrize("m", [2, 3, 8])
def test_iteration_keeps_its_bound_and_wastes_nothing(width: float, m: int) -> None:
    """On diagonal matrices the polynomial's largest relative error is the bound itself."""
    points = 400
    eigenvalues = torch.linspace(0.0, width, points, dtype=torch.float64)
    zeros = [torch.zeros(1, 1, points).double(), torch.zeros(1, 1, 1).double()]
    decay = Decay(zeros[1], torch.ones(1, 1, 1).double(), zeros[1], zeros[1].unsqueeze(0))
    gram = torch.diag(eigenvalues).unsqueeze(0)
    made = Problems(zeros[0], zeros[0], zeros[1], zeros[1][0], decay, gram, gram, gram, gram, zeros[0], gram)
    norm = torch.tensor([width / (1.0 + MARGIN)], dtype=torch.float64)
    x = iterate(made, torch.tensor([0]), norm, torch.ones(1, 1, points).double(), [m])
    error = float((x[0, 0] * (1.0 + eigenvalues) - 1.0).abs().max())
    q = math.tanh(math.log1p(width) / 4)
    bound = 2 * q**m / (1 + q ** (2 * m))
    assert error <= bound + 1e-12
    assert error >= 0.999 * bound - 1e-12


def test_norm_is_that_of_the_largest_matrix_of_each_chunk() -> None:
    operands = make_inputs((1.0, 0.6, 0.97))
    operands.log_forget[:, 70, 2] = -math.inf
    made = cut_problems(operands, torch.float64)
    systems = made.systems(64)
    matrices = systems.start.unsqueeze(-1) * systems.gram.unsqueeze(1)
    matrices = matrices + torch.einsum("pts,psk,psl->ptkl", systems.mask, systems.written, systems.key)
    index = torch.tensor([11, 0, 5, 6])
    wanted = torch.linalg.matrix_norm(matrices[index]).amax(1)
    assert torch.allclose(largest_norm(made, index), wanted, rtol=1e-10)


def test_restarts_come_after_the_plain_ones() -> None:
    log_forget = gates(1.0, 0.97, 0.99, 0.97)
    log_forget[1, 3] = -math.inf
    log_forget[2, 0] = -math.inf
    found = assigned(log_forget, 100.0)
    assert found.plain == 2
    assert found.shared.tolist() == [3, 0, 1, 2]
    assert found.run(1, 2) == slice(0, 1)
    assert found.run(0, 2) is None
    assert found.run(2, 4) == slice(1, 3)


def test_predicted_steps_grow_with_the_condition_number_and_end_at_the_size() -> None:
    largest = torch.tensor([1.0, 2.0, 10.0, 100.0, 1e4, 1e8], dtype=torch.float64)
    steps = steps_of_gradients(largest, torch.full_like(largest, 1e-4), 64)
    assert bool((steps.diff() >= 0).all())
    assert float(steps[0]) == 1.0
    assert float(steps[-1]) == 64.0


def make_inputs(gammas: tuple[float, ...], T: int = 200, K: int = 24) -> Operands:
    generator = torch.Generator().manual_seed(5)
    G = len(gammas)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key = torch.nn.functional.normalize(normal(1, T, G, K) * torch.logspace(0, -1, K) + 0.2, dim=-1)
    log_forget = torch.tensor(gammas, dtype=torch.float64).log().expand(1, T, G).clone()
    gate = torch.rand(1, T, G, generator=generator, dtype=torch.float64)
    states = [torch.zeros(1, G, K, K).double(), torch.zeros(1, G, K, K).double()]
    ridges = torch.full((G, K), 0.5).double()
    return Operands(normal(1, T, 2 * G, K), key, normal(1, T, G, K), log_forget, gate, ridges, *states)


def solve(inputs: Sequence[Tensor], tolerance: float, max_steps: int, method: str = "auto") -> Results:
    return mesa_backends.run_backend(Operands(*inputs), Solving(tolerance, max_steps, method))[0]


class Factorisations(TorchDispatchMode):
    """The number of matrices factored under this mode."""

    matrices = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.linalg_cholesky_ex.default:
            self.matrices += args[0].shape[0]
        return func(*args, **(kwargs or {}))


def test_mixed_heads_are_each_right_and_pay_for_themselves() -> None:
    gammas = (1.0, 0.6, 0.99, 0.97)
    inputs = make_inputs(gammas)
    inputs[3][:, 70, 2] = -math.inf
    _, _, _, solution, steps = solve(inputs, 1e-6, 1000)
    exact = mesa_exact(inputs)[3]
    error = ((solution - exact).norm(dim=-1) / exact.norm(dim=-1)).amax(1)[0]
    assert bool((error <= 1e-6).all())
    per_head = steps[0, 1].tolist()
    assert per_head[0] == per_head[1] == 1
    assert per_head[4] < per_head[6]
    for group in range(4):
        heads, pick = slice(2 * group, 2 * group + 2), slice(group, group + 1)
        alone = [inputs[0][:, :, heads], *(x[:, :, pick] for x in inputs[1:5]), inputs[5][pick]]
        *_, x, count = solve([*alone, *(s[:, pick] for s in inputs[6:])], 1e-6, 1000)
        assert torch.allclose(x, solution[:, :, heads], rtol=1e-10, atol=1e-12)
        assert count.tolist() == steps[..., heads].tolist()


def test_gradients_reuse_the_factors() -> None:
    operands, solving = make_inputs((0.99, 0.97)), Solving(1e-6, 1000, "shared")
    with Factorisations() as forward:
        results, factors = mesa_chunked.forward(operands, solving, keep=True)
    upstreams = Upstreams(results.output, results.gram, results.cross)
    with Factorisations() as backward:
        mesa_chunked.backward(upstreams, operands, results.solution, factors, solving)
    assert forward.matrices == 2 * 8  # of each problem the carried matrix and the small one
    assert backward.matrices == 0


def test_short_chunks_need_fewer_products_for_the_same_results() -> None:
    inputs = make_inputs((0.97, 0.9))
    inputs[3][:, 40, 1] = -math.inf
    found = []
    for chunk in (64, 32):
        solving = Solving(1e-9, 1000, "shared", chunk=chunk)
        results, factors = mesa_chunked.forward(inputs, solving, keep=True)
        upstreams = Upstreams(results.output, results.gram, results.cross)
        gradients = mesa_chunked.backward(upstreams, inputs, results.solution, factors, solving)
        found.append((results, gradients))
    (long, longs), (short, shorts) = found
    for expected, got in zip((*long[:4], *longs), (*short[:4], *shorts), strict=True):
        assert float((got - expected).norm()) <= 1e-7 * float(expected.norm())
    assert short.steps.shape == long.steps.shape
    assert bool((short.steps[:, :3] < long.steps[:, :3]).all())  # the last chunk has 8 tokens in either


def test_gradients_reuse_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, solving = make_inputs((0.6, 0.7)), Solving(1e-4, 1000, "chebyshev")
    results, kept = mesa_chunked.forward(operands, solving, keep=True)
    assert bool((kept.norm > 0).all())
    monkeypatch.delattr(mesa_solver, "largest_norm")
    upstreams = Upstreams(results.output, results.gram, results.cross)
    gradients = mesa_chunked.backward(upstreams, operands, results.solution, kept, solving)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_state_that_cannot_be_factored_goes_to_conjugate_gradients() -> None:
    """float32 may lose positive definiteness of a huge state; the other heads do not notice."""
    inputs = [x.float() for x in make_inputs((0.99, 0.99))]
    inputs[6][:, 0] = -0.9 * torch.eye(24)
    inputs[6][:, 0, 0, 0] = -3.0
    whole = solve(inputs, 1e-4, 100, "shared")
    assert torch.isfinite(whole.solution).all()
    alone = [inputs[0][:, :, 2:], *(x[:, :, 1:] for x in inputs[1:5]), inputs[5][1:], *(x[:, 1:] for x in inputs[6:])]
    assert torch.allclose(whole.solution[:, :, 2:], solve(alone, 1e-4, 100, "shared").solution, rtol=1e-5, atol=1e-6)


def test_correction_by_the_true_residual() -> None:
    """With a condition number of 1e4 the read-out loses digits in float32; one correction brings them back."""
    generator = torch.Generator().manual_seed(1)
    T, K = 3000, 16
    key = torch.nn.functional.normalize(torch.randn(1, T, 1, K, generator=generator), dim=-1)
    query, value = torch.randn(2, 1, T, 1, K, generator=generator)
    query = torch.nn.functional.normalize(query, dim=-1) + key
    rest = [torch.zeros(1, T, 1), torch.ones(1, T, 1), torch.full((1, K), 0.01), *[torch.zeros(1, 1, K, K)] * 2]
    inputs = Operands(query, key, value, *rest)
    wanted = mesa_exact(Operands(*[x.double() for x in inputs]))[0]

    made = cut_problems(inputs, torch.float32)
    rhs = to_chunks(query, 1, torch.float32).mul_(made.inverse_root)

    def error(rounding: float) -> float:
        x = mesa_solver.solve(made, rhs, Solving(1e-4, 100), rounding=rounding).x
        read = read_states(x, made.key, made.value * made.input_gate, made.cross, made.decay)
        return float((from_chunks(read, 1, T, 1, torch.float64) - wanted).norm() / wanted.norm())

    corrected = error(mesa_solver.ROUNDING)
    assert corrected < 0.1 * error(math.inf)
    assert corrected < 5e-6

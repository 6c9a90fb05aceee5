"""Hold mesa attention on the kernels to the oracle: output, states and all gradients, against float64.

On a machine without a card everything runs in Triton's interpreter, on fresh memory full of NaN, and on few small
cases, the slowest of them in `make test-all`; with one, on the whole covering sample of `operator_cases` too.
"""

from __future__ import annotations

import pytest
import torch
from operator_cases import (
    OUTPUTS,
    Case,
    attend,
    check_float32,
    covering_cases,
    make_operands,
    recorded_operands,
    relative_error,
)

from mesa_kernels import launch
from mesalm import mesa_attention

# |a - b| / |b| of whole tensors at the default tolerance of 1e-4: output and gradients lean on x, known to 1e-4, the
# gradients of keys and gates on products of two such solutions.
FLOAT32_OUTPUT, FLOAT32_GRADIENT = 1e-4, 5e-4
# Results of 16 bits are rounded to 11 or 8 bits, half a unit at most and a third of one on average; the interpreter
# cuts bfloat16 off instead of rounding, which doubles it; on a card TensorFloat-32 products add as much as 11 bits do.
ROUNDING = {torch.float16: 6e-4, torch.bfloat16: 6e-3}
SMALL = [
    Case("iid", "0.99", "none", "0.1", "random", 24, 40, "2/1", 130, "state"),
    Case("correlated", "0.97", "5%", "1", "random", 16, 16, "1/1", 70, "state"),
    Case("repeated", "1", "none", "0.1", "1", 32, 8, "2/2", 65, "one row"),
    Case("iid", "0.5", "none", "spread", "zeros and ones", 8, 24, "3/1", 66, "two rows"),
    Case("nearly identical", "0.9", "1%", "0.01", "random", 16, 16, "2/1", 64, "packed"),
    Case("correlated", "by token", "every", "0.1", "0", 16, 8, "1/1", 63, "two rows"),
    Case("iid", "by head", "1%", "1", "random", 40, 16, "2/2", 66, "packed state"),
]
SIZES = launch.Sizes(1, 64, 2, 2, 40, 8, False, torch.device("cpu"))
CARD, SLOW = pytest.mark.card, pytest.mark.slow
MARKS = [(CARD, SLOW), CARD, CARD, (CARD, SLOW), (), (), SLOW]
MARKED = [pytest.param(case, marks=marks) for case, marks in zip(SMALL, MARKS, strict=True)]
CASES = [*MARKED, *(covering_cases() if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case: Case, kernels: str) -> None:
    operands = make_operands(case)
    exact = attend(operands, "exact", torch.float64)
    rounding = attend(operands, "exact", torch.float32)
    got = attend(operands, "triton", torch.float32, device=kernels)
    for name, wanted in exact.items():
        bound = FLOAT32_OUTPUT if name in OUTPUTS else FLOAT32_GRADIENT
        assert relative_error(got[name], wanted) <= max(bound, 3 * relative_error(rounding[name], wanted)), name


LONG = Case("iid", "0.99", "1%", "0.1", "random", 32, 16, "2/1", 130, "one row")
SHORT = Case("correlated", "0.999", "none", "0.1", "random", 16, 24, "1/1", 64, "one row")


@pytest.mark.card
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (LONG, torch.bfloat16),
        (SHORT, torch.float16),
        pytest.param(LONG, torch.float16, marks=pytest.mark.slow),
        pytest.param(SHORT, torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_inputs_of_16_bits(case: Case, dtype: torch.dtype, kernels: str) -> None:
    """Against the oracle in float64 on the same 16-bit numbers: what is left is the rounding of results."""
    operands = make_operands(case)
    tokens = [x.to(dtype).double() if place < 3 else x for place, x in enumerate(operands.tokens)]
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(*tokens[0].shape[:3], tokens[2].shape[3], generator=generator).to(dtype)

    def run(backend: str, device: str) -> list[torch.Tensor]:
        wide = backend == "exact"
        leaves = [
            (x if wide else x.to(dtype if place < 3 else torch.float32)).detach().to(device).requires_grad_()
            for place, x in enumerate(tokens)
        ]
        output = mesa_attention(*leaves, backend=backend)
        gradients = torch.autograd.grad(output, leaves, upstream.to(device, output.dtype))
        return [x.detach().double().cpu() for x in (output, *gradients)]

    for place, (got, wanted) in enumerate(zip(run("triton", kernels), run("exact", "cpu"), strict=True)):
        assert relative_error(got, wanted) <= ROUNDING[dtype], place


@pytest.mark.card
def test_forget_gates_over_a_large_state(kernels: str) -> None:
    """Half of the directions were never written: there solutions are large, and H x is a small difference."""
    g = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tokens = [x.bfloat16() for x in (normal(1, 70, 1, 16), normal(1, 70, 1, 16) / 4, normal(1, 70, 1, 16))]
    log_forget = -0.3 * torch.rand(1, 70, 1, generator=g) ** 3
    written = normal(1, 1, 16, 8)
    start = ((200 * written @ written.mT).float(), normal(1, 1, 16, 16).float())

    def run(backend: str, dtype: torch.dtype | None, device: str) -> torch.Tensor:
        moved = [x.to(device, dtype) for x in (*tokens, log_forget, *start)]
        gates = moved[3].requires_grad_()
        output = mesa_attention(*moved[:4], None, 1.0, initial_state=tuple(moved[4:]), backend=backend)
        return torch.autograd.grad(output.double().square().sum(), gates)[0].double().cpu()

    wanted = run("exact", torch.float64, "cpu")
    assert relative_error(run("triton", None, kernels), wanted) <= ROUNDING[torch.bfloat16]


def test_tiles_of_the_solvers(tile: int, kernels: str) -> None:
    """Heads of 40 take three tiles of 16 or two of 32, the last one not full."""
    assert launch.choose("gradients", SIZES).tile == tile
    operands = make_operands(Case("correlated", "by head", "none", "0.1", "random", 40, 8, "1/1", 62, "one row"))
    check_float32(operands, kernels)


@pytest.mark.slow
@pytest.mark.card
def test_gradients_scale_with_the_upstream_gradient(kernels: str) -> None:
    """Down to 2^-30, about 1e-9: powers of two round nothing, so that only a guard with a size of its own can show."""
    operands = make_operands(Case("iid", "0.9", "none", "0.1", "random", 16, 8, "1/1", 66, "one row"))
    whole, small = (attend(operands, "triton", torch.float32, scale=x, device=kernels) for x in (1.0, 2.0**-30))
    for name, x in whole.items():
        if name not in OUTPUTS:
            assert relative_error(small[name] * 2.0**30, x) <= 1e-6, name


@pytest.mark.slow  # the interpreter computes in one order
@pytest.mark.card
def test_two_runs_give_the_same_bits(kernels: str) -> None:
    operands = make_operands(SMALL[1])
    one, other = (attend(operands, "triton", torch.float32, device=kernels) for _ in range(2))
    assert all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.slow
@pytest.mark.card
def test_operands_of_a_trained_model(kernels: str) -> None:
    operands = recorded_operands("recorded_short", 65)[1]
    check_float32(operands, kernels)


@pytest.mark.card
def test_the_report_names_the_back_end(kernels: str) -> None:
    query = torch.nn.functional.normalize(torch.randn(1, 65, 1, 16, device=kernels), dim=-1)
    _, report = mesa_attention(query, query, query, backend="triton", return_report=True)
    assert report.backend == "triton"
    assert report.converged.all()
    assert report.steps.shape == (1, 2, 1)
    with pytest.raises(ValueError, match="kernels take float32, bfloat16, float16, not float64"):
        mesa_attention(*[query.double()] * 3, backend="triton")
    with pytest.raises(ValueError, match="kernels take keys of size 1 to 256, not 300"):
        mesa_attention(*[torch.zeros(1, 2, 1, 300, device=kernels)] * 3, backend="triton")

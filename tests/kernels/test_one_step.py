"""Hold the kernel of a single token to the oracle in float64: easy systems, hard ones, and several steps in a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from operator_cases import Case, Operands, make_operands, relative_error
from tiny import tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesa_kernels import launch
from mesalm import mesa_attention
from mesalm.model.mesa_triton import beside

TOLERANCE = 1e-4
# Output and state lean on x, known to the tolerance; what float32 loses in the oracle itself may be lost thrice.
BOUND = 1e-4
STEPS = 2
CASES = [
    Case("iid", "0.99", "none", "0.1", "random", 16, 40, "4/2", 9, "two rows"),
    Case("correlated", "1", "none", "0.01", "1", 20, 24, "2/1", 60, "one row"),
    Case("repeated", "1", "none", "0.01", "1", 16, 8, "2/2", 90, "one row"),
    Case("nearly identical", "0.97", "none", "spread", "random", 32, 16, "2/1", 40, "state"),
    Case("iid", "0.5", "every", "0.1", "zeros and ones", 8, 72, "2/2", 6, "state"),
    Case("correlated", "by token", "5%", "1", "0", 20, 20, "1/1", 6, "state"),
]


def cut(operands: Operands, first: int, last: int) -> list[Tensor]:
    """Give the tokens from first to last, and the ridge."""
    return [*(x[:, first:last] for x in operands.tokens[:5]), operands.tokens[5]]


def step_through(
    operands: Operands, backend: str, dtype: torch.dtype, device: str, **options: object
) -> Iterator[tuple[Tensor, Tensor, Tensor, object]]:
    """Yield output, gram, cross and the report of the last steps, whose first state is the oracle's."""
    T = operands.tokens[0].shape[1]
    _, state = mesa_attention(
        *cut(operands, 0, T - STEPS), initial_state=operands.state, return_state=True, backend="exact"
    )
    state = tuple(x.to(device, torch.float64 if dtype == torch.float64 else torch.float32) for x in state)
    for t in range(T - STEPS, T):
        tokens = [x.to(device, dtype if place < 3 else x.dtype) for place, x in enumerate(cut(operands, t, t + 1))]
        output, state, report = mesa_attention(
            *tokens, initial_state=state, return_state=True, return_report=True, backend=backend, **options
        )
        yield output.double().cpu(), *(x.double().cpu() for x in state), report


def step_in_memory(operands: Operands, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the same of the kernel that keeps the gram of no size in registers."""
    T, K = operands.tokens[0].shape[1], operands.tokens[1].shape[-1]
    _, state = mesa_attention(
        *cut(operands, 0, T - STEPS), initial_state=operands.state, return_state=True, backend="exact"
    )
    for t in range(T - STEPS, T):
        tokens = [x.to(device, torch.float32) for x in (*cut(operands, t, t + 1), *state)]
        output, after, *_ = launch.step(*tokens, tolerance=TOLERANCE, max_steps=4 * K, held_size=0)
        state = after[..., :K], after[..., K:]
        yield output.double().cpu(), *(x.double().cpu() for x in state)


@pytest.mark.parametrize(
    ("case", "held"),
    [
        *(pytest.param(case, True, marks=pytest.mark.card) for case in CASES[:2]),
        *((case, True) for case in CASES[3:5]),
        *(pytest.param(case, True, marks=pytest.mark.slow) for case in (CASES[2], CASES[5])),
        (CASES[0], False),
        pytest.param(CASES[1], False, marks=pytest.mark.slow),
    ],
    ids=lambda x: str(x) if isinstance(x, Case) else "in registers" if x else "in memory",
)
def test_steps_in_a_row(case: Case, held: bool, kernels: str, tuned: Callable[[dict[str, int]], None]) -> None:
    """In memory by tiles of 16, as larger keys are; single steps of the oracle in float64 continue one another too."""
    operands = make_operands(case)
    whole = mesa_attention(*operands.tokens, initial_state=operands.state, backend="exact")
    exact, rounded = (step_through(operands, "exact", dtype, "cpu") for dtype in (torch.float64, torch.float32))
    if held:
        mine = step_through(operands, "triton", torch.float32, kernels)
    else:
        tuned({"one step": 16})
        mine = step_in_memory(operands, kernels)
    for place, (got, wanted, rounding) in enumerate(zip(mine, exact, rounded, strict=True), start=-STEPS):
        assert not held or got[3].backend == "triton"
        assert relative_error(wanted[0], whole[:, place:][:, :1]) < 1e-6  # float32 held the first state
        for mine, best, single in zip(got[:3], wanted[:3], rounding[:3], strict=True):
            assert relative_error(mine, best) <= max(BOUND, 3 * relative_error(single, best))
        assert torch.equal(got[1], got[1].mT)


def system(K: int, eigenvalues: Tensor, rotated: bool, heads: int = 2) -> list[Tensor]:
    """Make a step that writes nothing into a gram of given eigenvalues, along the axes or rotated; ridge 1."""
    generator = torch.Generator().manual_seed(K)
    basis = torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=torch.float64))[0]
    basis = basis if rotated else torch.eye(K, dtype=torch.float64)
    gram = ((basis * eigenvalues) @ basis.mT).float()
    query = torch.randn(1, 1, heads, K, generator=generator)
    key, value = torch.randn(1, 1, 1, K, generator=generator), torch.randn(1, 1, 1, 8, generator=generator)
    cross = torch.randn(1, 1, K, 8, generator=generator)
    nothing = torch.zeros(1, 1, 1)
    return [query, key, value, nothing, nothing, torch.ones(1, K), gram[None, None], cross]


@pytest.mark.parametrize(
    ("largest", "rotated"),
    [
        *((1e1, False), (1e4, True), (1e7, True)),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((1e1, True), (1e4, False), (1e7, False))),
    ],
)
def test_hard_systems_are_solved_to_the_rounding_of_their_entries(largest: float, rotated: bool, kernels: str) -> None:
    """x is right to the tolerance, or as right as the entries of the system allow, whichever way it is solved.

    What they allow is seen by moving each by the share that counts as rounding; a sample of such moves stays below what
    the worst one does, hence the factor of 4.
    """
    K = 20
    operands = system(K, torch.linspace(0, 1, K, dtype=torch.float64).pow(3) * largest, rotated)
    _, _, x, steps = launch.step(*(y.to(kernels) for y in operands), tolerance=TOLERANCE, max_steps=4 * K)
    exact = solve_dense(operands)
    moved = []
    for seed in range(4):
        noise = torch.randn(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sign().tril()
        moved.append(solve_dense(operands, 1.0 + 2.0**-22 * (noise + noise.tril(-1).mT)))
    assert (steps >= 0).all()
    for head, (mine, best) in enumerate(zip(x[0, 0].double().cpu(), exact, strict=True)):
        allowed = max(relative_error(other[head], best) for other in moved)
        assert relative_error(mine, best) <= max(TOLERANCE, 4 * allowed)


def solve_dense(operands: list[Tensor], move: Tensor | float = 1.0) -> Tensor:
    """Solve the systems of `system`, entries times `move`, `[heads, K]` in float64."""
    query, gram = operands[0][0, 0].double(), operands[6][0, 0].double()
    return torch.linalg.solve((gram + torch.eye(len(gram))) * move, query.mT).mT


@pytest.mark.parametrize("held", [True, False], ids=["in registers", "in memory"])
def test_what_does_not_end_is_factored(held: bool, kernels: str) -> None:
    """One head of two has an eigenvector for a query and ends at once; the other is factored, and says so."""
    K = 24
    size = {} if held else {"held_size": 0}
    operands = system(K, torch.linspace(0, 30, K, dtype=torch.float64), rotated=True)
    operands[0][0, 0, 1] = torch.linalg.eigh(operands[6][0, 0]).eigenvectors[:, 5]
    output, state, x, steps = launch.step(*(y.to(kernels) for y in operands), tolerance=TOLERANCE, max_steps=2, **size)
    assert steps[0, 0].tolist() == [0, 1]
    exact = solve_dense(operands)
    assert relative_error(x[0, 0].double().cpu(), exact) <= 2e-6  # about the condition number, 30, times 2^-24
    assert relative_error(output[0, 0].double().cpu(), exact @ operands[7][0, 0].double()) <= 2e-6
    assert torch.equal(state[0, 0, :, :K].cpu(), 0.5 * (operands[6] + operands[6].mT)[0, 0])


def test_wherever_it_is_cut_off_what_counts_as_done_is_right(kernels: str) -> None:
    """Conjugate gradients are cut off early and late: their x passes as rounding, or the system is factored.

    2e-5 is twice what moving the entries by 2^-22 does at the condition number of 31 in the worst case; an x that is a
    few steps short is further off.
    """
    K = 24
    operands = system(K, torch.linspace(0, 30, K, dtype=torch.float64), rotated=True, heads=1)
    exact = solve_dense(operands)
    ended = set()
    for most in (11, 15, 19, 24, 40):
        _, _, x, steps = launch.step(*(y.to(kernels) for y in operands), tolerance=1e-7, max_steps=most)
        assert relative_error(x[0, 0].double().cpu(), exact) <= 2e-5, most
        ended.add(int(steps) > 0)
    assert ended == {False, True}


def test_one_large_head_and_layouts(kernels: str) -> None:
    """K = 136 in memory beside V = 20, a gram that is not symmetric, and states that lie beside one another."""
    generator = torch.Generator().manual_seed(3)
    K, V = 136, 20

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(2, 1, K, K) / K**0.5
    state = torch.cat((root @ root.mT + 0.1 * (skew := normal(2, 1, K, K)) - 0.1 * skew.mT, normal(2, 1, K, V)), -1)
    query, key, value = (torch.nn.functional.normalize(normal(2, 1, 1, size), dim=-1) for size in (K, K, V))
    tokens = [query, key, value, torch.full((2, 1, 1), -0.1), torch.full((2, 1, 1), 0.7), 0.5]
    joined = state.float()
    exact, wanted = mesa_attention(
        *tokens, initial_state=(joined[..., :K].double(), joined[..., K:].double()), return_state=True, backend="exact"
    )
    joined = joined.to(kernels)
    output, after, report = mesa_attention(
        *(x.to(kernels, torch.float32) if isinstance(x, Tensor) else x for x in tokens),
        initial_state=(joined[..., :K], joined[..., K:]),
        return_state=True,
        return_report=True,
        backend="triton",
    )
    assert bool(report.converged.all())
    assert int(report.steps.max()) < K
    for mine, best in zip((output, *after), (exact, *wanted), strict=True):
        assert relative_error(mine.double().cpu(), best) <= BOUND
    together = beside(*after)
    assert together.data_ptr() == after.gram.data_ptr()
    assert torch.equal(together, torch.cat(after, -1))
    apart = beside(after.gram.clone(), after.cross.clone())
    assert torch.equal(apart, together)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_inputs_of_16_bits(dtype: torch.dtype, kernels: str) -> None:
    """The output is rounded to 11 or 8 bits (bfloat16 is cut off in the interpreter); states stay in float32."""
    operands = make_operands(Case("iid", "0.9", "none", "0.1", "random", 16, 24, "4/2", 8, "state"))
    tokens = [x.to(dtype).double() if place < 3 else x for place, x in enumerate(operands.tokens)]
    operands = Operands(tuple(tokens), operands.state, None)
    exact = step_through(operands, "exact", torch.float64, "cpu")
    for got, wanted in zip(step_through(operands, "triton", dtype, kernels), exact, strict=True):
        assert relative_error(got[0], wanted[0]) <= {torch.float16: 6e-4, torch.bfloat16: 6e-3}[dtype]
        for mine, best in itertools.islice(zip(got, wanted, strict=True), 1, 3):
            assert relative_error(mine, best) <= 1e-6


def test_zero_queries_and_two_runs(kernels: str) -> None:
    """A query of zeros gives zeros without a step; two runs give the same bits."""
    operands = [x.to(kernels) for x in system(12, torch.linspace(0, 9, 12, dtype=torch.float64), rotated=True)]
    operands[0][0, 0, 0] = 0.0
    one, other = (launch.step(*operands, tolerance=TOLERANCE, max_steps=48) for _ in range(2))
    assert not one[0][0, 0, 0].any()
    assert one[3][0, 0, 0] == 0
    assert one[3][0, 0, 1] > 0
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_gradients_and_other_back_ends_are_visible(kernels: str) -> None:
    token = torch.nn.functional.normalize(torch.randn(1, 1, 1, 16, device=kernels), dim=-1)
    assert mesa_attention(token, token, token, backend="triton", return_report="steps")[1].backend == "triton"
    leaf = token.clone().requires_grad_()
    output, report = mesa_attention(leaf, token, token, backend="triton", return_report="steps")
    assert report.backend == "torch"
    assert output.requires_grad
    with torch.no_grad():
        assert mesa_attention(leaf, token, token, backend="triton", return_report="steps")[1].backend == "triton"


def test_packed_sequences_of_single_tokens(kernels: str) -> None:
    """cu_seqlens with states: rows of one token, one of them empty."""
    operands = make_operands(Case("iid", "0.9", "none", "0.1", "random", 16, 8, "2/1", 2, "one row"))
    bounds = torch.tensor([0, 1, 1, 2])
    tokens = [x.to(kernels, torch.float32) for x in operands.tokens]
    output, state, report = mesa_attention(
        *tokens, cu_seqlens=bounds.to(kernels), return_state=True, return_report=True, backend="triton"
    )
    exact, wanted = mesa_attention(*operands.tokens, cu_seqlens=bounds, return_state=True, backend="exact")
    assert report.backend == "triton"
    for mine, best in zip((output, *state), (exact, *wanted), strict=True):
        assert relative_error(mine.double().cpu(), best) <= BOUND


class Calls(TorchDispatchMode):
    """A list of the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_generation_reaches_the_kernel(kernels: str) -> None:
    """A model writes the same tokens with its cache on this kernel as on PyTorch; grouped heads."""
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(**heads, tolerance=1e-4, pad_token_id=0).to(kernels)
    ids = torch.randint(2, 61, (1, 5), generator=torch.Generator().manual_seed(1)).to(kernels)

    def write(backend: str) -> tuple[Tensor, Tensor, int]:
        for layer in model.modules():
            if hasattr(layer, "solver_steps"):
                layer.config.mesa_backend = backend
        with Calls() as calls:
            made = model.generate(
                ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        return made.sequences, torch.stack(made.logits), sum("mesa_step" in name for name in calls.names)

    expected, logits, steps = write("torch")
    assert steps == 0
    sequences, found, steps = write("triton")
    assert steps == 3  # tokens after the first, which the prompt gives
    assert torch.equal(sequences, expected)
    assert (
        relative_error(found.double(), logits.double()) <= 1e-3
    )  # the tolerance, and what the layers after make of it

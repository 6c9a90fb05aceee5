"""Check the operator as part of torch: compiled, checkpointed, in threads, and loaded a second time."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mesalm.model import mesa_backends, mesa_triton, operator_records
from mesalm.model.delta_chunked import DELTA
from mesalm.model.linear_chunked import LINEAR
from mesalm.model.operator_kalman import System, _solve_op, kalman_attention
from mesalm.model.operator_linear import delta_rule, linear_attention
from mesalm.model.operator_mesa import mesa_attention

FOLDER = Path(mesa_backends.__file__).parent


def make_inputs(T: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Make query, key, value, log_forget, input_gate and ridge."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gates = [-0.1 * torch.rand(2, T, 2, generator=generator), torch.rand(2, T, 2, generator=generator)]
    made = [normal(2, T, 4, 6), normal(2, T, 2, 6), normal(2, T, 2, 5), *gates, torch.ones(2, 6)]
    return [x.to(dtype).requires_grad_() for x in made]


def block(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Use the operators as a model would, the light report included."""
    output, state, report = mesa_attention(*inputs, return_state=True, return_report="steps")
    key = torch.nn.functional.normalize(inputs[1], dim=-1)
    delta = delta_rule(inputs[0], key, *inputs[2:5])
    mixed = kalman_attention(*inputs[:5], steps=3)
    return (output.tanh() + linear_attention(*inputs[:5]) + delta + mixed).sum(-1), state.gram, report.steps


@pytest.mark.parametrize(("T", "dynamic"), [(1, False), pytest.param(70, False, marks=pytest.mark.slow), (70, True)])
def test_compiled_equals_eager_in_one_graph(T: int, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (T, T + 3) if T > 1 else (T,):
        inputs = make_inputs(length)
        wanted, got = block(*inputs), compiled(*inputs)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(
            torch.autograd.grad(got[0].sum() + got[1].sum(), inputs),
            torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), inputs),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_packed_rows_compile() -> None:
    torch._dynamo.reset()
    inputs = [x.detach()[:1] for x in make_inputs(70)[:5]]
    bounds = torch.tensor([0, 20, 64, 70])

    def packed(*tokens: Tensor) -> Tensor:
        return mesa_attention(*tokens, cu_seqlens=bounds)

    compiled = torch.compile(packed, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), packed(*inputs))


def test_a_number_for_a_ridge_compiles_where_numbers_are_symbols() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mesa_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = [x.detach() for x in make_inputs(5)[:5]]
    assert torch.equal(compiled(*inputs, 0.5), mesa_attention(*inputs, 0.5))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    inputs = make_inputs(70)
    wanted = block(*inputs)
    got = checkpoint(block, *inputs, use_reentrant=reentrant)
    assert torch.equal(got[2], wanted[2])
    gradients = torch.autograd.grad(wanted[0].sum(), inputs)
    got[0].sum().backward()
    for x, gradient in zip(inputs, gradients, strict=True):
        assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration_is_consistent(dtype: torch.dtype) -> None:
    """Let torch compare schema, fake shapes, strides, dtypes and autograd with what really comes out."""
    inputs = make_inputs(70, dtype)
    gram, cross = torch.zeros(2, 2, 6, 6), torch.zeros(2, 2, 6, 5)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    states = (gram.requires_grad_(), cross.requires_grad_())
    mesa = (*inputs, *states, 1e-4, 30, "shared", "torch", 32, True)
    ways = ("auto", "chebyshev", "cg")
    others = (*((way, "torch", 64, True) for way in ways), ("auto", "torch", 32, False))
    for settings in (*((1e-4, 30, *rest) for rest in others), mesa[-6:]):
        some = checks if settings[-1] else ("test_schema", "test_faketensor")
        torch.library.opcheck(mesa_backends._forward_op, (*inputs, *states, *settings), test_utils=some)
    for recurrence in (LINEAR, DELTA):
        torch.library.opcheck(recurrence.forward, (*inputs[:5], cross), test_utils=checks)
    if dtype == torch.float32:
        system = System(inputs[0], inputs[1][..., :1].square() + 1.0, *inputs[1:2], *inputs[3:5], gram)
        torch.library.opcheck(_solve_op, (*system, 0.5, 3), test_utils=checks)
    with torch.no_grad():
        output, last_gram, last_cross, solution, _, *factors = mesa_backends._forward_op(*mesa)
        backward = (output, last_gram, last_cross, *mesa[:8], solution, *factors, *mesa[-6:-1])
        backward = tuple(x.detach() if isinstance(x, Tensor) else x for x in backward)
        torch.library.opcheck(mesa_backends._backward_op, backward, test_utils=("test_schema", "test_faketensor"))
        again = (output, last_cross, *(x.detach() for x in (*inputs[:5], cross)))
        for recurrence in (LINEAR, DELTA):
            torch.library.opcheck(recurrence.backward, again, test_utils=("test_schema", "test_faketensor"))


OPERANDS = (
    "Tensor query, Tensor key, Tensor value, Tensor log_forget, Tensor input_gate, Tensor ridge, Tensor gram, "
    "Tensor cross"
)
READ = "Tensor query, Tensor key, Tensor value, Tensor log_forget, Tensor input_gate, Tensor cross"
SOLVING = "float tolerance, int max_steps, str method, str backend, int chunk"
SCHEMAS = {
    mesa_backends._forward_op: ("mesa_forward", f"{OPERANDS}, {SOLVING}, bool keep", 8),
    mesa_backends._backward_op: (
        "mesa_backward",
        f"Tensor upstream, Tensor gram_upstream, Tensor cross_upstream, {OPERANDS}, Tensor solution, Tensor carried, "
        f"Tensor gains, Tensor norm, {SOLVING}",
        8,
    ),
    mesa_triton._step_op: ("mesa_step", f"{OPERANDS}, float tolerance, int max_steps", 4),
    LINEAR.forward: ("linear_forward", READ, 2),
    LINEAR.backward: ("linear_backward", f"Tensor upstream, Tensor cross_upstream, {READ}", 6),
    _solve_op: (
        "kalman_solve",
        "Tensor right, Tensor norm, Tensor key, Tensor log_forget, Tensor input_gate, Tensor gram, float ratio, "
        "int steps",
        1,
    ),
    DELTA.forward: ("delta_forward", READ, 2),
    DELTA.backward: ("delta_backward", f"Tensor upstream, Tensor cross_upstream, {READ}", 6),
}


def test_schemas_stay() -> None:
    """Programs that torch.export wrote name the operators and their arguments."""
    for operator, (name, arguments, results) in SCHEMAS.items():
        returns = ", ".join(["Tensor"] * results)
        schema = f"{operator_records.NAMESPACE}::{name}({arguments}) -> {returns if results == 1 else f'({returns})'}"
        assert str(operator._opoverload._schema) == schema


def load_copy(folder: Path, name: str) -> ModuleType:
    """Load the operator's files from a flat folder as a package of another name, as remote code is."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.operator_mesa")


@pytest.fixture
def flat_copy(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "copy"
    folder.mkdir()
    for pattern in ("operator_*.py", "mesa_*.py", "linear_*.py", "chunk_*.py"):
        for path in FOLDER.glob(pattern):
            shutil.copy(path, folder / path.name)
    (folder / "__init__.py").write_text("")
    yield folder
    for name in [name for name in sys.modules if name.startswith("second_copy")]:
        del sys.modules[name]


def test_two_copies_in_one_process(flat_copy: Path) -> None:
    inputs = make_inputs(70)
    wanted = mesa_attention(*inputs)
    for name in ("second_copy_a", "second_copy_b"):
        copy = load_copy(flat_copy, name)
        got = copy.mesa_attention(*inputs)
        assert torch.equal(got, wanted)
        assert sys.modules[f"{name}.operator_records"].NAMESPACE == name != operator_records.NAMESPACE
        torch.autograd.grad(got.sum(), inputs)
    assert torch.equal(mesa_attention(*inputs), wanted)


def test_the_same_copy_loaded_again(flat_copy: Path) -> None:
    """transformers may import remote code anew after its files changed: names are then taken over."""
    inputs = make_inputs(70)
    wanted = mesa_attention(*inputs)
    first = load_copy(flat_copy, "second_copy_c")
    for name in [name for name in sys.modules if name.startswith("second_copy_c.")]:
        del sys.modules[name]
    second = load_copy(flat_copy, "second_copy_c")
    assert first is not second
    got = second.mesa_attention(*inputs)
    assert torch.equal(got, wanted)
    torch.autograd.grad(got.sum(), inputs)


def test_two_threads() -> None:
    lengths = (70, 130)
    expected = {}
    for T in lengths:
        inputs = make_inputs(T)
        expected[T] = torch.autograd.grad(block(*inputs)[0].sum(), inputs)
    failures: list[str] = []

    def work(T: int) -> None:
        for _ in range(5):
            inputs = make_inputs(T)
            gradients = torch.autograd.grad(block(*inputs)[0].sum(), inputs)
            if not all(torch.equal(a, b) for a, b in zip(gradients, expected[T], strict=True)):
                failures.append(f"length {T}")

    threads = [threading.Thread(target=work, args=(T,)) for T in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

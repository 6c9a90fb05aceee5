"""Check the operator's gradients: against differences, at every upstream scale, and what they hold in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mesalm.model import mesa_chunked
from mesalm.model.chunk_states import CHUNK
from mesalm.model.mesa_solver import Solving
from mesalm.model.operator_linear import delta_rule, linear_attention
from mesalm.model.operator_mesa import mesa_attention
from mesalm.model.operator_records import Operands, Upstreams
from mesalm.train.activations import counted_storages


def make_inputs(
    T: int, B: int = 1, H: int = 2, G: int = 1, K: int = 3, V: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Make correlated keys, long and short memory, one restart; query to cross, in `dtype`."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key = torch.nn.functional.normalize(normal(B, T, G, K) + 0.5, dim=-1)
    log_forget = -0.1 * torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    log_forget[:, 2] = -80.0
    gate = 0.1 + 0.8 * torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    ridge = 0.3 + torch.rand(G, K, generator=generator, dtype=torch.float64)
    root = normal(B, G, K, K)
    made = [normal(B, T, H, K), key, normal(B, T, G, V), log_forget, gate, ridge, root @ root.mT]
    return [x.to(dtype) for x in (*made, normal(B, G, K, V))]


def mesa(backend: str, **options: object) -> Callable[..., tuple[Tensor, ...]]:
    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        output, state = mesa_attention(
            *inputs[:6], initial_state=inputs[6:], return_state=True, backend=backend, **options
        )
        return output, *state

    return call


@pytest.mark.parametrize("backend", ["exact", "torch"])
@pytest.mark.parametrize("T", [1, CHUNK + 2])  # also two chunks, the last one cut short
def test_mesa_gradient_equals_differences(backend: str, T: int) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(max(T, 3))]
    inputs = [x.detach()[:, :T].requires_grad_() if i < 5 else x for i, x in enumerate(inputs)]
    assert torch.autograd.gradcheck(mesa(backend, tolerance=1e-14), inputs, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("backend", ["exact", "torch"])
@pytest.mark.parametrize("attend", [linear_attention, delta_rule])
def test_linear_gradient_equals_differences(attend: Callable[..., tuple[Tensor, Tensor]], backend: str) -> None:
    def call(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return attend(*inputs[:5], initial_state=inputs[5], return_state=True, backend=backend)

    inputs = make_inputs(CHUNK + 2)
    operands = [x.requires_grad_() for x in (*inputs[:5], inputs[7])]
    assert torch.autograd.gradcheck(call, operands, atol=1e-7, fast_mode=True)


def hard_inputs(dtype: torch.dtype) -> list[Tensor]:
    """Make unit keys and queries in the wide, ill-conditioned case of a head that forgets nothing."""
    inputs = make_inputs(150, H=4, G=2, K=24, V=16)
    inputs[0] = torch.nn.functional.normalize(inputs[0], dim=-1)
    inputs[3] = 0.02 * inputs[3].clamp(min=-1.0)
    return [x.to(dtype) for x in inputs[:5]] + inputs[5:6]


@pytest.mark.parametrize("scale", [1e0, 1e-3, 1e-9])
def test_gradient_of_bfloat16_is_right_at_every_upstream_scale(scale: float) -> None:
    """A guard that is not relative shows here; tests/model/test_operator_grid.py has the other precisions."""
    inputs = hard_inputs(torch.bfloat16)
    upstream = torch.randn(1, 150, 4, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    scaled = upstream * torch.tensor(scale, dtype=torch.bfloat16)

    def gradients(operands: list[Tensor], backend: str, weight: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in operands]
        output = mesa_attention(*leaves, backend=backend)
        return torch.autograd.grad(output, leaves, weight)

    got = gradients(inputs, "torch", scaled)
    wanted = gradients([x.double() for x in inputs], "exact", scaled.double() / scale)
    for name, a, b in zip(("query", "key", "value", "log_forget", "input_gate", "ridge"), got, wanted, strict=True):
        error = float((a.double() / scale - b).norm() / b.norm())
        assert error < 1e-2, (name, error)


def test_rows_of_very_different_size() -> None:
    """Every row of the upstream gradient gets its own relative accuracy."""
    inputs = hard_inputs(torch.float32)
    size = 10.0 ** -torch.arange(150).remainder(10).float().view(1, 150, 1, 1)
    upstream = size * torch.randn(1, 150, 4, 16, generator=torch.Generator().manual_seed(1))
    leaf = inputs[0].clone().requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    output = mesa_attention(leaf, *inputs[1:], tolerance=1e-6)
    exact = mesa_attention(wide, *[x.double() for x in inputs[1:]], backend="exact")
    (got,) = torch.autograd.grad(output, leaf, upstream)
    (wanted,) = torch.autograd.grad(exact, wide, upstream.double())
    assert float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()) < 1e-4


@pytest.mark.parametrize("backend", ["exact", "torch"])
def test_gradient_of_one_argument_only(backend: str) -> None:
    inputs = make_inputs(70)
    for i in range(8):
        leaf = inputs[i].clone().requires_grad_()
        operands = [*inputs[:i], leaf, *inputs[i + 1 :]]
        output, gram, _cross = mesa(backend, tolerance=1e-12)(*operands)
        # The state alone is differentiated too: what arrives at the output may be nothing.
        assert torch.isfinite(torch.autograd.grad(output.sum(), leaf, retain_graph=True)[0]).all()
        if i in (1, 3, 4, 6):
            assert torch.isfinite(torch.autograd.grad(gram.square().sum(), leaf)[0]).all()


def test_restart_has_no_gradient() -> None:
    inputs = make_inputs(70, dtype=torch.float32)
    inputs[3][:, 10:40:3] = -torch.inf
    inputs[3][:, 50] = -1e30
    leaf = inputs[3].clone().requires_grad_()
    for gradient in (
        torch.autograd.grad(mesa_attention(*inputs[:3], leaf, *inputs[4:6]).sum(), leaf)[0],
        torch.autograd.grad(linear_attention(*inputs[:3], leaf, inputs[4]).sum(), leaf)[0],
        torch.autograd.grad(delta_rule(*inputs[:3], leaf, inputs[4]).sum(), leaf)[0],
    ):
        assert torch.isfinite(gradient).all()
        assert bool((gradient[inputs[3] < -1e3] == 0).all())
        assert bool((gradient[inputs[3] > -1][2:] != 0).any())


def saved_numbers(T: int) -> int:
    inputs = [x.requires_grad_() for x in make_inputs(T, K=48, V=48, dtype=torch.float32)]
    seen: list[int] = []
    with counted_storages(lambda x: seen.append(x.untyped_storage().nbytes() // 4)):
        mesa_attention(*inputs[:6])
    return sum(seen)


def test_saved_memory_grows_with_tokens_only() -> None:
    short, long = saved_numbers(256), saved_numbers(1024)
    token = (long - short) / 768
    # query and solution of two heads; key, value, gates; the factor: K * K / 64 + K numbers
    assert token <= 2 * 2 * 48 + 2 * 48 + 8 + 48 * 48 / 64 + 48


class Largest(TorchDispatchMode):
    """Note the most numbers that one tensor made under this mode holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("method", ["auto", "shared", "cg"])
def test_no_matrix_a_token_is_made(method: str) -> None:
    T, K = 512, 48
    operands = Operands(*make_inputs(T, H=1, K=K, V=K, dtype=torch.float32))
    solving = Solving(1e-4, 100, method)
    with Largest() as largest:
        results, factors = mesa_chunked.forward(operands, solving, keep=True)
        upstreams = Upstreams(results.output, results.gram, results.cross)
        mesa_chunked.backward(upstreams, operands, results.solution, factors, solving)
    # A 64 x 64 mask a chunk, in float64 while it is made, is the largest thing.
    assert largest.numbers <= 2 * T * CHUNK < T * K * K / 10

"""Check the kernels as part of torch: compiled whole, registered truly, and with autocast's dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mesalm import mesa_attention
from mesalm.model import mesa_backends, mesa_triton


def make_inputs(T: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Make query, key, value, log_forget, input_gate and ridge, then gram and cross beside one another."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gates = [-0.1 * torch.rand(1, T, 1, generator=generator), torch.rand(1, T, 1, generator=generator)]
    tokens = [x.to(dtype) for x in (normal(1, T, 2, 6), normal(1, T, 1, 6), normal(1, T, 1, 5))]
    made = [*tokens, *gates, torch.ones(1, 6), torch.cat((torch.eye(6), normal(6, 5)), -1)[None, None]]
    return [x.to(device) for x in made]


def block(backend: str, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Use the operator as a model would, its state carried on in one tensor."""
    *operands, state = inputs
    before = (state[..., :6], state[..., 6:])
    output, after, report = mesa_attention(
        *operands, initial_state=before, return_state=True, return_report="steps", backend=backend
    )
    assert report.backend == backend
    return output.tanh(), mesa_triton.beside(*after), report.steps


@pytest.mark.parametrize("T", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_compiled_equals_eager_in_one_graph(T: int, kernels: str) -> None:
    """A step of decoding without gradients, a chunk with them."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda *inputs: block("triton", *inputs), fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_(T > 1) for x in make_inputs(T, kernels)]
    wanted, got = block("triton", *inputs), compiled(*inputs)
    for mine, eager in zip(got, wanted, strict=True):
        assert torch.equal(mine, eager)
    if T > 1:
        gradients = [torch.autograd.grad(x[0].sum() + x[1].sum(), inputs) for x in (got, wanted)]
        for mine, eager in zip(*gradients, strict=True):
            assert torch.allclose(mine, eager, rtol=1e-5, atol=1e-6)


def test_registration_is_consistent(kernels: str) -> None:
    """Let torch compare schemas and fake shapes, strides and dtypes with what comes out of the kernels."""
    checks = ("test_schema", "test_faketensor")
    settings = (1e-3, 24, "auto", "triton", 64)
    *operands, state = make_inputs(3, kernels, torch.bfloat16)
    operands += [state[..., :6].contiguous(), state[..., 6:].contiguous()]
    torch.library.opcheck(mesa_backends._forward_op, (*operands, *settings, False), test_utils=checks)
    output, gram, cross, solution, _, *factors = mesa_backends._forward_op(*operands, *settings, False)
    upstream = (output, gram, cross)
    torch.library.opcheck(
        mesa_backends._backward_op, (*upstream, *operands, solution, *factors, *settings), test_utils=checks
    )
    single = (*(x[:, :1] for x in operands[:5]), operands[5], state[..., :6], state[..., 6:])
    torch.library.opcheck(mesa_triton._step_op, (*single, 1e-3, 24), test_utils=checks)


@pytest.mark.parametrize("T", [1, 3])
def test_autocast_leaves_states_and_solve_alone(T: int, kernels: str) -> None:
    """Inside autocast dtypes are those of the torch back end, and the kernels compute what they compute outside."""
    inputs = make_inputs(T, kernels, torch.bfloat16)
    with torch.no_grad():
        plain = block("triton", *inputs)
        with torch.autocast(kernels, dtype=torch.bfloat16):
            cast, other = (
                mesa_attention(
                    *inputs[:6],
                    initial_state=(inputs[6][..., :6], inputs[6][..., 6:]),
                    return_state=True,
                    return_report="steps",
                    backend=backend,
                )
                for backend in ("triton", "torch")
            )
    for mine, theirs in zip((cast[0], *cast[1], cast[2].steps), (other[0], *other[1], other[2].steps), strict=True):
        assert mine.dtype == theirs.dtype
    assert [cast[0].dtype, cast[1].gram.dtype] == [torch.bfloat16, torch.float32]
    assert torch.equal(cast[0].tanh(), plain[0])
    assert torch.equal(torch.cat(cast[1], -1), plain[1])

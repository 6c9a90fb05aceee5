"""Compare gated KalmaNet's attention with the recurrence and a dense solve per token, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mesalm.model.operator_kalman import RATIO, kalman_attention
from mesalm.model.operator_mesa import MesaState


def make_inputs(T: int, B: int = 2, H: int = 4, G: int = 2, K: int = 3) -> list[Tensor]:
    """Make query, key of length 1, value, log_forget with restarts, input_gate, mix, gram and cross."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    key, root = torch.nn.functional.normalize(normal(B, T, G, K), dim=-1), normal(B, G, K, K)
    log_forget = (-0.1 * chance(B, T, G)).masked_fill(chance(B, T, G) < 0.05, -torch.inf)
    gates = [log_forget, 0.05 + 0.95 * chance(B, T, G), chance(B, T, H)]
    made = [normal(B, T, H, K), key, normal(B, T, G, 5), *gates, root @ root.mT, normal(B, G, K, 5)]
    return [x.requires_grad_() for x in made]


def exact(*inputs: Tensor) -> list[Tensor]:
    """Compute output, gram and cross as the equations are written."""
    query, key, value, log_forget, input_gate, mix, gram, cross = inputs
    B, T, H, K = query.shape
    G, outputs = key.shape[2], []
    gram = 0.5 * (gram + gram.mT)
    for t in range(T):
        gamma, beta = (x[:, t, :, None, None] for x in (log_forget.exp(), input_gate))
        k, q = key[:, t].unsqueeze(-1), query[:, t].view(B, G, H // G, K)
        gram, cross = gamma * gram + beta * k @ k.mT, gamma * cross + beta * k @ value[:, t].unsqueeze(-2)
        ridge = RATIO * torch.linalg.matrix_norm(gram)[..., None, None] * torch.eye(K)
        x = torch.linalg.solve((gram + ridge).unsqueeze(2), q.unsqueeze(-1)).squeeze(-1)
        read = q + mix[:, t].view(B, G, H // G, 1) * (x - q)
        outputs.append((read @ cross).reshape(B, H, -1))
    return [torch.stack(outputs, 1), gram, cross]


def with_gradients(results: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the results, and the gradients of a fixed random function of them."""
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in results]
    total = sum((weight * x).sum() for weight, x in zip(weights, results, strict=True))
    return [x.detach() for x in (*results, *torch.autograd.grad(total, inputs))]


@pytest.mark.parametrize(("steps", "accuracy"), [(30, 5e-3), (300, 1e-11)])
@pytest.mark.parametrize(("T", "K"), [(1, 3), (2, 3), (64, 3), (130, 3), (130, 40)])
def test_equals_the_exact_solve(T: int, K: int, steps: int, accuracy: float) -> None:
    inputs = make_inputs(T, K=K)
    state = MesaState(*inputs[6:])
    output, last = kalman_attention(*inputs[:6], initial_state=state, return_state=True, steps=steps)
    got, wanted = with_gradients([output, *last], inputs), with_gradients(exact(*inputs), inputs)
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert float((a - b).norm() / b.norm()) < accuracy, index


def test_dtypes_gates_of_zero_and_no_tokens() -> None:
    inputs = [x.detach() for x in make_inputs(130)[:6]]
    wanted = kalman_attention(*inputs)
    for dtype, accuracy in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        cast = [x.to(dtype) for x in inputs[:3]] + [x.float() for x in inputs[3:]]
        got, state = kalman_attention(*cast, return_state=True)
        assert got.dtype == dtype
        assert state.gram.dtype == torch.float32
        assert float((got.double() - wanted).norm() / wanted.norm()) < accuracy
    closed = [*inputs[:4], torch.zeros_like(inputs[4]), inputs[5]]
    leaf = closed[1].clone().requires_grad_()
    output = kalman_attention(closed[0], leaf, *closed[2:])
    assert bool((output == 0).all())
    assert bool(torch.autograd.grad(output.sum(), leaf)[0].isfinite().all())
    assert kalman_attention(*[x[:, :0] for x in inputs]).shape == (2, 0, 4, 5)


def test_an_empty_batch_has_gradients() -> None:
    inputs = [x.detach()[:0].requires_grad_() for x in make_inputs(5)]
    output, last = kalman_attention(*inputs[:6], initial_state=MesaState(*inputs[6:]), return_state=True)
    assert output.shape == (0, 5, 4, 5)
    gradients = torch.autograd.grad(output.sum() + last.gram.sum() + last.cross.sum(), inputs)
    assert [x.shape for x in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("forget", [-31.0, -50.0, -70.0])
def test_a_large_state_that_is_almost_forgotten(forget: float) -> None:
    """In float32 a factor below e^-60 counts as 0, and so does that of |H|^2 where H has decayed by e^-30."""
    x = torch.ones(1, 2, 1, 1)
    log_forget, input_gate = torch.tensor([[[0.0], [forget]], [[1.0], [0.0]]]).unsqueeze(1)
    output = kalman_attention(x, 3e3 * x, x, log_forget, input_gate)
    wanted = kalman_attention(*(x.double() for x in (x, 3e3 * x, x, log_forget, input_gate)))
    torch.testing.assert_close(output.double(), wanted, atol=1e-3, rtol=1e-4)


def test_a_backward_pass_under_autocast() -> None:
    inputs = [x.detach().float().requires_grad_() for x in make_inputs(70)[:6]]
    wanted = torch.autograd.grad(kalman_attention(*inputs).sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(kalman_attention(*inputs).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)

"""Check torch.func, forward mode and derivatives of higher order against central differences and single calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.model.operator_kalman import kalman_attention
from mesalm.model.operator_linear import delta_rule, linear_attention
from mesalm.model.operator_mesa import mesa_attention

Function = Callable[..., Tensor]
# torch makes its first dual number by what it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
WITH_BACKENDS = {"mesa": mesa_attention, "linear": linear_attention, "delta": delta_rule}
# systems so easy that these steps end at the exact solution, whose derivatives gated KalmaNet's attention has
KALMAN = functools.partial(kalman_attention, ratio=4.0, steps=9)
OPERATORS: dict[str, Callable[..., Any]] = {**WITH_BACKENDS, "kalman": KALMAN}


def make(operator: str, T: int, layout: str = "plain", backend: str = "auto") -> tuple[Function, list[Tensor]]:
    """Return a function of tensors that are all differentiable, and a value for each of them."""
    generator = torch.Generator().manual_seed(T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if operator == "kalman":  # takes no packed rows
        layout = layout.replace("packed", "plain")
    B, rows = (1, 2) if "packed" in layout else (2, 2)
    gates = [-normal(B, T, 1).abs() - 0.1, normal(B, T, 1).sigmoid()]
    made = [normal(B, T, 2, 3), normal(B, T, 1, 3), normal(B, T, 1, 2), *gates]
    options: dict[str, object] = {} if operator == "kalman" else {"backend": backend}
    if "packed" in layout:
        options["cu_seqlens"] = torch.tensor([0, T // 2, T])
    if operator == "mesa":
        made.append(1.0 + normal(1, 3).square())
        options |= {"tolerance": 1e-13, "max_steps": 100}
    if operator == "kalman":
        made.append(normal(B, T, 2).sigmoid())
    gram = operator in ("mesa", "kalman")
    given = len(made)
    if "state" in layout:
        options["return_state"] = True
        root = normal(rows, 1, 3, 3)
        made += [root @ root.mT, normal(rows, 1, 3, 2)] if gram else [normal(rows, 1, 3, 2)]

    def function(*tensors: Tensor) -> Tensor:
        state: Any = tensors[given:] or None
        if state and not gram:
            state = state[0]
        result = OPERATORS[operator](*tensors[:given], initial_state=state, **options)
        if "state" not in layout:
            return result
        output, last = result
        return torch.cat([x.flatten() for x in (output, *(last if gram else (last,)))])

    return function, made


def flat(tree: object) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in torch.utils._pytree.tree_leaves(tree)])


def assert_close(got: object, wanted: object, tolerance: float = 1e-6, note: str = "") -> None:
    a, b = flat(got), flat(wanted)
    assert float(b.norm()) > 0
    assert float((a - b).norm()) <= tolerance * float(b.norm()), note


def difference(function: Callable[..., object], values: list[Tensor], tangents: list[Tensor]) -> Tensor:
    """Differentiate along the tangents by a fourth-order central difference."""

    def moved(step: float) -> Tensor:
        return flat(function(*(x + step * t for x, t in zip(values, tangents, strict=True)))).detach()

    h = 1e-3
    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def tangents_of(values: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in values]


def dual_numbers(function: Function, values: list[Tensor], tangents: list[Tensor], requires_grad: bool) -> Tensor:
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x.clone().requires_grad_(requires_grad), t)
            for x, t in zip(values, tangents, strict=True)
        ]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    assert tangent is not None
    return tangent.detach()


FORWARD: dict[str, Callable[[Function, list[Tensor], list[Tensor]], Tensor]] = {
    "jvp": lambda f, x, t: jvp(f, tuple(x), tuple(t))[1],
    "batch of jvp": lambda f, x, t: vmap(lambda *t: jvp(f, tuple(x), t)[1])(*(u[None] for u in t)),
    "dual numbers": functools.partial(dual_numbers, requires_grad=False),
    "dual numbers that require grad": functools.partial(dual_numbers, requires_grad=True),
    "double backward": lambda f, x, t: torch.autograd.functional.jvp(f, tuple(x), tuple(t))[1],
}


@pytest.mark.parametrize(
    ("T", "layout"), [(1, "state"), (2, "plain"), (2, "packed"), (3, "packed state"), (70, "state"), (70, "packed")]
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_tangents(operator: str, T: int, layout: str) -> None:
    function, values = make(operator, T, layout)
    tangents = tangents_of(values)
    wanted = difference(function, values, tangents)
    for name, way in FORWARD.items():
        assert_close(way(function, values, tangents), wanted, note=name)


# torch's tracer warns of tensors that the function it linearizes has in its closure
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("operator", WITH_BACKENDS)
def test_linearize(operator: str) -> None:
    function, values = make(operator, 3)
    tangents = tangents_of(values)
    assert_close(linearize(function, *values)[1](*tangents), difference(function, values, tangents))


@pytest.mark.parametrize("operator", OPERATORS)
def test_jacobians_and_hessians(operator: str) -> None:
    function, values = make(operator, 3)
    gate = values[3]

    def last(gate: Tensor) -> Tensor:
        return function(*values[:3], gate, *values[4:])[:, -1].square().sum(-1)

    def total(gate: Tensor) -> Tensor:
        return last(gate).sin().sum()

    one_by_one = [difference(last, [gate], [t.view_as(gate)]) for t in torch.eye(gate.numel(), dtype=gate.dtype)]
    jacobian = torch.stack(one_by_one, -1)
    ways: list[Callable[[Function], Function]] = [
        jacfwd,
        jacrev,
        lambda f: lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True),
        lambda f: lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    ]
    for way in ways:
        assert_close(way(last)(gate), jacobian)
    slope = grad(total)
    one_by_one = [difference(slope, [gate], [t.view_as(gate)]) for t in torch.eye(gate.numel(), dtype=gate.dtype)]
    ways = [
        hessian,
        lambda f: jacrev(jacrev(f)),
        lambda f: lambda x: torch.autograd.functional.hessian(f, x),
        lambda f: lambda x: torch.autograd.functional.hessian(f, x, vectorize=True),
    ]
    for way in ways:
        assert_close(way(total)(gate), torch.stack(one_by_one, -1))


@pytest.mark.parametrize("T", [1, 70])
@pytest.mark.parametrize("operator", OPERATORS)
def test_batched_calls_are_the_calls(operator: str, T: int) -> None:
    function, values = make(operator, T, "state")
    weight = function(*values).cos()

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        return vjp(function, *values)[1](weight)

    def singly(*values: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in values]
        return torch.autograd.grad(function(*leaves), leaves, weight)

    others = [x * 0.7 for x in values]
    batch = [torch.stack(pair) for pair in zip(values, others, strict=True)]
    both = list(zip(singly(*values), singly(*others), strict=True))
    assert_close(vmap(function)(*batch), [function(*values), function(*others)])
    assert_close(vmap(gradients)(*batch), [torch.stack(pair) for pair in both])
    assert_close(gradients(*values), singly(*values))
    leaves = [x.detach().requires_grad_() for x in values]
    weights = torch.stack((weight, 2 * weight))
    got = torch.autograd.grad(function(*leaves), leaves, weights, is_grads_batched=True)
    assert_close([x[1] for x in got], [2 * x for x in singly(*values)])


@pytest.mark.parametrize("layout", ["state", "packed"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_second_derivatives_by_finite_differences(operator: str, layout: str) -> None:
    function, values = make(operator, 4, layout, backend="torch")
    leaves = tuple(x.requires_grad_() for x in values)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("operator", OPERATORS)
def test_second_derivatives_are_of_chunks_too(operator: str) -> None:
    """A gradient penalty: the gradient's own derivative, by differences of gradients that no one differentiates."""
    function, values = make(operator, 70, "state", backend="torch")

    def gradients(*values: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in values]
        return torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=create_graph)

    tangents = tangents_of(values)
    wanted = difference(gradients, values, tangents)
    leaves = [x.detach().requires_grad_() for x in values]
    first = gradients(*leaves, create_graph=True)
    assert torch.equal(flat(first), flat(gradients(*leaves)))
    # the Hessian is symmetric: its product with the tangents is the gradient along them
    along = sum((g * t).sum() for g, t in zip(first, tangents, strict=True))
    assert isinstance(along, Tensor)
    assert_close(torch.autograd.grad(along, leaves), wanted)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_backward_pass_is_differentiated_forward(operator: str) -> None:
    """The graph of a plain call, whose backward pass meets the tangents: it is linear in what it is given."""
    function, values = make(operator, 70, "state")
    leaves = [x.requires_grad_() for x in values]
    output = function(*leaves)
    weight, tangent = output.detach().cos(), output.detach().sin()

    def pull(weight: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, leaves, weight, retain_graph=True)

    wanted = pull(tangent)
    assert_close(jvp(pull, (weight,), (tangent,))[1], wanted)
    assert_close(vmap(lambda t: jvp(pull, (weight,), (t,))[1])(tangent[None]), wanted)
    with forward_ad.dual_level():
        got = [forward_ad.unpack_dual(x).tangent for x in pull(forward_ad.make_dual(weight, tangent))]
    assert_close(got, wanted)


@pytest.mark.parametrize("operator", ["mesa", *(pytest.param(x, marks=pytest.mark.slow) for x in ("linear", "delta"))])
def test_compiled_transforms(operator: str) -> None:
    function, values = make(operator, 2)
    tangents = tangents_of(values)
    wanted = difference(function, values, tangents)
    torch._dynamo.reset()
    inside = torch.compile(lambda *x: jvp(function, x[: len(values)], x[len(values) :])[1], backend="aot_eager")
    assert_close(inside(*values, *tangents), wanted)
    outside = torch.compile(function, backend="aot_eager")
    assert_close(outside(*values), function(*values))  # a graph without tangents, which must not serve those with them
    assert_close(jvp(outside, tuple(values), tuple(tangents))[1], wanted)
    assert_close(dual_numbers(outside, values, tangents, requires_grad=False), wanted)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("operator", WITH_BACKENDS)
def test_other_back_ends_refuse(operator: str, backend: str) -> None:
    if operator != "mesa" and backend == "triton":
        return
    function, values = make(operator, 2, backend=backend)
    for call in (
        lambda: jvp(function, tuple(values), tuple(values)),
        lambda: vmap(function)(*(x[None] for x in values)),
        lambda: vjp(function, *values),
        lambda: dual_numbers(function, values, values, requires_grad=False),
    ):
        with pytest.raises(ValueError, match=f"^backend is '{backend}': must be 'auto' or 'exact' under torch.func"):
            call()


def test_no_tokens_return_memory_of_their_own() -> None:
    for operator, attention in WITH_BACKENDS.items():
        for backend in ("auto", "exact", "torch"):
            _, values = make(operator, 0, "state")
            state = tuple(values[-2:]) if operator == "mesa" else values[-1]
            _, last = attention(*values[:3], initial_state=state, return_state=True, backend=backend)
            for x in last if operator == "mesa" else (last,):
                before = [y.clone() for y in values]
                x.add_(1.0)
                assert all(torch.equal(y, z) for y, z in zip(values, before, strict=True))


@functools.cache
def model(mixers: str) -> MesaForCausalLM:
    return tiny_model(mixers=mixers, initializer_range=0.02, tolerance=1e-12).double()


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("mixers", WITH_BACKENDS)
def test_models(mixers: str, use_cache: bool) -> None:
    network = model(mixers)
    ids = torch.randint(0, 16, (2, 5), generator=torch.Generator().manual_seed(0))
    named = {name: x.detach() for name, x in network.named_parameters()}
    read = network.get_input_embeddings()(ids).detach()

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        inputs = {"input_ids": row[None], "labels": row[None], "use_cache": use_cache}
        return functional_call(network, parameters, (), inputs).loss

    wanted = [
        torch.autograd.grad(loss(dict(network.named_parameters()), row), list(network.parameters())) for row in ids
    ]
    got = vmap(grad(loss), (None, 0))(named, ids)
    for row in (0, 1):
        assert_close([x[row] for x in got.values()], wanted[row], 1e-4)  # norms and gates are float32

    def logits(read: Tensor) -> Tensor:
        return network(inputs_embeds=read, use_cache=use_cache).logits

    tangents = tangents_of([read])
    assert_close(jvp(logits, (read,), tuple(tangents))[1], difference(logits, [read], tangents), 1e-3)

    def slope(read: Tensor) -> Tensor:
        return grad(lambda read: logits(read).logsumexp(-1).sum())(read)

    assert_close(jvp(slope, (read,), tuple(tangents))[1], difference(slope, [read], tangents), 1e-3)


def test_models_refuse_by_the_name_of_their_setting() -> None:
    network = MesaForCausalLM(MesaConfig(**(model("mesa").config.to_diff_dict() | {"mesa_backend": "torch"})))
    read = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match="mesa_backend"):
        jvp(lambda read: network(inputs_embeds=read).logits, (read,), (read,))
    network.config.mesa_backend = "exact"
    assert jvp(lambda read: network(inputs_embeds=read).logits, (read,), (read + 1.0,))[1].any()
    assert "mesa_backend" in inspect.signature(MesaConfig).parameters

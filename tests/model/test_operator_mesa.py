"""Compare the chunked operator with the oracle, and the oracle with an independent recursion."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import make_keys
from torch import Tensor

from mesalm.model.operator_mesa import MesaState, mesa_attention

ACCURACY = 1e-10
RESTARTS = ("restart 0.01", "restart 0.2", "restart 1.1")  # and the share of tokens that restart


def make_gates(kind: str, B: int, T: int, G: int, generator: torch.Generator) -> Tensor:
    log = torch.zeros(B, T, G, dtype=torch.float64)
    chance = torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    if kind == "mixture":
        rates = torch.tensor([1.0, 0.999, 0.97, 0.8, 0.5], dtype=torch.float64)
        return rates[(chance * 5).long()].log()
    if kind.startswith("restart"):
        log -= 0.02
        return log.masked_fill(chance < float(kind.split()[1]), -torch.inf)
    if kind == "very negative":
        log -= 0.01
        log = torch.where(chance < 0.1, -1e30, log)
        log = torch.where((chance > 0.1) & (chance < 0.2), -745.2, log)
        return torch.where((chance > 0.2) & (chance < 0.4), -40.0 * chance, log)
    return log + torch.log(torch.tensor(float(kind), dtype=torch.float64))


def make_inputs(
    T: int,
    *,
    B: int = 2,
    H: int = 2,
    G: int = 2,
    K: int = 5,
    V: int = 4,
    keys: str = "iid",
    gates: str = "mixture",
    ridge: float = 1.0,
    writing: str = "random",
    rows: int | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Make the eight tensor arguments in float64, ridge within a factor 2 of `ridge`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key = make_keys(keys, B, T, G, K, generator)
    query = torch.nn.functional.normalize(normal(B, T, H, K), dim=-1)
    gate = torch.rand(B, T, G, generator=generator, dtype=torch.float64)
    gate = {"random": gate, "zeros and ones": gate.round(), "nothing": 0 * gate}[writing]
    ridges = ridge * (1.0 + torch.rand(G, K, generator=generator, dtype=torch.float64))
    root = normal(rows or B, G, K, K)
    gram = root @ root.mT / K
    made = [query, key, normal(B, T, G, V), make_gates(gates, B, T, G, generator), gate, ridges]
    return [x.requires_grad_() for x in (*made, gram, normal(rows or B, G, K, V))]


def run(inputs: list[Tensor], backend: str, **options: object) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs (output, gram, cross) and the gradients of a fixed random function of all three."""
    *tokens, gram, cross = inputs
    output, state = mesa_attention(
        *tokens,
        initial_state=MesaState(gram, cross),
        return_state=True,
        backend=backend,
        tolerance=1e-13,
        **options,
    )
    results = [output, state.gram, state.cross]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in results]
    total = sum((w * x).sum() for w, x in zip(weights, results, strict=True))
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return results, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


def assert_close(got: list[Tensor], wanted: list[Tensor], accuracy: float = ACCURACY) -> None:
    largest = max(float(x.detach().norm()) for x in wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape
        assert torch.isfinite(a).all(), i
        # A gradient that is itself nearly zero is measured against the largest one.
        scale = float(b.detach().norm()) + 1e-3 * largest
        error = float((a - b).detach().norm())
        assert error <= accuracy * scale, (i, error, scale)


def compare(inputs: list[Tensor]) -> None:
    before = [x.detach().clone() for x in inputs]
    got, got_gradients = run(inputs, "torch")
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert got[0].is_contiguous()
    wanted, wanted_gradients = run(inputs, "exact")
    assert_close(got, wanted)
    assert_close(got_gradients, wanted_gradients)
    restarts = torch.isinf(inputs[3])
    assert bool((got_gradients[3][restarts] == 0).all())


@pytest.mark.parametrize("ridge", ["number", "scalar tensor", "[G]"])
def test_ridge_forms(ridge: str) -> None:
    query, key, value, log_forget, gate, *_ = make_inputs(70)
    forms = {"number": 0.5, "scalar tensor": torch.tensor(0.5), "[G]": torch.tensor([0.5, 0.5])}
    full = torch.full((2, 5), 0.5, dtype=torch.float64)
    got = mesa_attention(query, key, value, log_forget, gate, forms[ridge], tolerance=1e-13)
    wanted = mesa_attention(query, key, value, log_forget, gate, full, tolerance=1e-13)
    assert torch.equal(got, wanted)


def test_gradient_of_one_ridge_a_head() -> None:
    gradients = []
    for backend in ("torch", "exact"):
        query, key, value, log_forget, gate, *_ = make_inputs(70)
        ridge = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
        output = mesa_attention(query, key, value, log_forget, gate, ridge, backend=backend, tolerance=1e-13)
        gradients.append(torch.autograd.grad(output.square().sum(), ridge)[0])
    assert_close(gradients[:1], gradients[1:])


def test_empty_batch() -> None:
    inputs = make_inputs(70, B=0)
    compare(inputs)
    output, report = mesa_attention(*inputs[:6], return_report=True)
    assert output.shape == (0, 70, 2, 4)
    assert report.steps.shape == report.residual.shape == (0, 2, 2)


@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_defaults_of_the_gates(backend: str) -> None:
    query, key, value, *_ = make_inputs(70)
    got = mesa_attention(query, key, value, backend=backend)
    none = torch.zeros(2, 70, 2, dtype=torch.float64)
    wanted = mesa_attention(query, key, value, none, none + 1, 1.0, backend=backend)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_packed_sequences_equal_separate_ones(backend: str) -> None:
    bounds = [0, 0, 1, 30, 30, 64, 129, 130, 130]
    S = len(bounds) - 1
    inputs = make_inputs(130, B=1, H=4, rows=S, gates="mixture")
    lengths = torch.tensor(bounds)
    got, got_gradients = run(inputs, backend, cu_seqlens=lengths)
    *tokens, ridge, gram, cross = inputs
    parts, grams, crosses = [], [], []
    for s, (a, b) in enumerate(itertools.pairwise(bounds)):
        output, state = mesa_attention(
            *[x[:, a:b] for x in tokens],
            ridge,
            initial_state=(gram[s : s + 1], cross[s : s + 1]),
            return_state=True,
            backend="exact",
        )
        parts.append(output)
        grams.append(state.gram)
        crosses.append(state.cross)
    wanted = [torch.cat(parts, 1), torch.cat(grams), torch.cat(crosses)]
    assert_close(got, wanted)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in wanted]
    total = sum((w * x).sum() for w, x in zip(weights, wanted, strict=True))
    assert_close(got_gradients, list(torch.autograd.grad(total, inputs)))

    # Without states the same sequences go through restarts in one row.
    stateless = [x.detach() for x in (*tokens, ridge)]
    packed = mesa_attention(*stateless, cu_seqlens=lengths, backend=backend, tolerance=1e-13)
    padded, _ = mesa_attention(*stateless, cu_seqlens=lengths, backend=backend, tolerance=1e-13, return_state=True)
    assert_close([packed], [padded])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_dtypes(dtype: torch.dtype, backend: str) -> None:
    inputs = [x.detach() for x in make_inputs(130, H=4, K=16, gates="restart 0.02")]
    rounded = [x.to(dtype) for x in inputs[:5]]
    output, state = mesa_attention(*rounded, inputs[5], return_state=True, backend=backend, tolerance=1e-6)
    doubles = [x.double() for x in rounded]
    wide, wide_state = mesa_attention(*doubles, inputs[5], return_state=True, tolerance=1e-13)
    assert output.dtype == dtype
    assert state.gram.dtype == state.cross.dtype == torch.float32
    accuracy = {torch.float32: 2e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
    assert float((output.double() - wide).norm() / wide.norm()) < accuracy
    assert float((state.gram.double() - wide_state.gram).norm() / wide_state.gram.norm()) < 1e-6


@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_autocast_does_not_lower_the_solve(backend: str) -> None:
    inputs = [x.detach().float() for x in make_inputs(130, K=16)][:6]
    wanted = mesa_attention(*inputs, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mesa_attention(*inputs, backend=backend), wanted)


@pytest.mark.parametrize("backend", ["torch", "exact"])
def test_equals_sherman_morrison_recursion(backend: str) -> None:
    """Without forgetting the inverse can be carried by rank-one updates, with no solve at all."""
    query, key, value, _, gate, ridge, *_ = (x.detach() for x in make_inputs(150, B=1, H=1, G=1, K=6))
    inverse, cross = torch.diag(1.0 / ridge[0]), torch.zeros(6, 4, dtype=torch.float64)
    outputs = []
    for t in range(150):
        k, v, b = key[0, t, 0], value[0, t, 0], gate[0, t, 0]
        gain = inverse @ k
        inverse = inverse - b * torch.outer(gain, gain) / (1.0 + b * k @ gain)
        cross = cross + b * torch.outer(k, v)
        outputs.append(cross.T @ (inverse @ query[0, t, 0]))
    got = mesa_attention(query, key, value, None, gate, ridge, backend=backend, tolerance=1e-13)
    assert_close([got[0, :, 0]], [torch.stack(outputs)])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    T=st.one_of(st.sampled_from([0, 1, 2, 63, 64, 65]), st.integers(0, 140)),
    G=st.integers(1, 2),
    R=st.integers(1, 3),
    K=st.integers(1, 6),
    V=st.integers(1, 4),
    keys=st.sampled_from(["iid", "correlated", "nearly identical", "repeated"]),
    gates=st.sampled_from(["1", "0.999", "0.97", "0.5", "mixture", *RESTARTS, "very negative"]),
    ridge=st.sampled_from([0.01, 0.3, 10.0]),
    writing=st.sampled_from(["random", "zeros and ones", "nothing"]),
)
def test_any_call_equals_exact(
    T: int, G: int, R: int, K: int, V: int, keys: str, gates: str, ridge: float, writing: str
) -> None:
    sizes = {"H": G * R, "G": G, "K": K, "V": V}
    compare(make_inputs(T, B=1, keys=keys, gates=gates, ridge=ridge, writing=writing, **sizes))

"""The benchmark measures what it says it measures."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mesalm.model.operator_mesa import mesa_attention

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_synthetic_operands_are_what_the_case_says(bench: SimpleNamespace, gamma: float) -> None:
    made = {keys: bench.cases.make_operands(bench.cases.Case(2048, size=32, keys=keys, gamma=gamma)) for keys in KEYS}
    for operands in made.values():
        assert float(operands.log_forget.mean()) == pytest.approx(math.log(gamma), rel=0.05)
        assert float(operands.log_forget.std()) == pytest.approx(0.53 * -math.log(gamma), rel=0.1)
        assert operands.key.norm(dim=-1).sub(1).abs().max() < 1e-5
        assert operands.ridge.min() > 0.25
    largest = {}
    for keys, operands in made.items():
        gram = torch.einsum("thk,thl->hkl", operands.key[0], operands.key[0]) / 2048
        largest[keys] = float(torch.linalg.eigvalsh(gram)[:, -1].mean())
        overlap = float((operands.query * operands.key).sum(-1).mean())
        assert overlap > 0.5 if keys == "corr" else abs(overlap) < 0.02
    assert largest["corr"] > 4 * largest["iid"]


def test_correlated_keys_follow_their_recurrence(bench: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 70, 1, 3, generator=generator, dtype=torch.float64)
    made = bench.cases._correlate(noise, torch.zeros(1, 3, dtype=torch.float64))
    state = noise[:, 0]
    for t in range(70):
        state = 0.7 * state + (1 - 0.7**2) ** 0.5 * noise[:, t] if t else state
        scale = torch.arange(1, 4, dtype=torch.float64) ** -0.5
        torch.testing.assert_close(made[:, t], state * scale, rtol=1e-12, atol=1e-14)


KEYS = ("iid", "corr")


@pytest.mark.parametrize("block", [1, 1 << 19])
@pytest.mark.parametrize("heads", [2, 4])
def test_the_baseline_computes_mesa_attention(
    bench: SimpleNamespace, heads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cg_fixed, "BLOCK_NUMBERS", block)
    made = bench.cases.make_operands(bench.cases.Case(300, heads=2, size=12, gamma=0.97, dtype="float64"))
    query = made.query.repeat_interleave(heads // 2, 2) + 0.1 * torch.arange(heads).view(1, 1, -1, 1)
    mine, exact = ([x.clone().requires_grad_() for x in (query, *made[1:])] for _ in range(2))
    outputs = bench.cg_fixed.mesa_fixed_steps(*mine, 40), mesa_attention(*exact, backend="exact")
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)  # 40 steps on systems of 12: to rounding
    upstream = torch.randn_like(outputs[0])
    gradients = torch.autograd.grad(outputs[0], mine, upstream), torch.autograd.grad(outputs[1], exact, upstream)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_the_baseline_takes_the_steps_it_is_given(bench: SimpleNamespace) -> None:
    made = bench.cases.make_operands(bench.cases.Case(256, heads=1, size=32, gamma=1.0, dtype="float64"))
    exact = mesa_attention(*made, backend="exact")
    errors = [float((bench.cg_fixed.mesa_fixed_steps(*made, n) - exact).norm() / exact.norm()) for n in (2, 6, 12)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 1e-9


def test_the_truth_of_last_tokens_is_that_of_the_whole(bench: SimpleNamespace) -> None:
    made = bench.cases.make_operands(bench.cases.Case(200, heads=2, size=8, gamma=0.97))
    whole = bench.accuracy.find_truth(made, gradients=False)
    tail = bench.accuracy.find_truth(made, gradients=False, whole=100, last=30)
    assert (whole.first, tail.first) == (0, 170)
    torch.testing.assert_close(tail.output, whole.output[:, 170:], rtol=1e-10, atol=1e-12)
    wrong = whole.output.clone()
    wrong[:, 171, 0] *= 1.5
    errors = bench.accuracy.output_errors(wrong, tail)
    assert errors.worst == pytest.approx(0.5)
    assert errors.quantile < 1e-10
    assert errors.from_token == 170
    assert bench.accuracy.output_errors(1.01 * whole.output, whole).output == pytest.approx(0.01)


def test_steps_are_those_that_the_solver_reports(bench: SimpleNamespace) -> None:
    made = bench.cases.make_operands(bench.cases.Case(256, heads=2, size=16, gamma=1.0))
    words = ("shared@1e-4", "cg@1e-4", "cg-30", "linear")
    shared, gradients, fixed, nothing = (bench.variants.mean_steps(bench.variants.find(word), made) for word in words)
    # without forgetting one product with the shared factor is the solution
    assert (shared, fixed, nothing) == (1, 30, None)
    assert gradients > 5


def test_measurements_take_turns(bench: SimpleNamespace) -> None:
    calls: list[str] = []
    actions = {name: lambda name=name: calls.append(name) for name in "ABC"}
    spreads = bench.measure.interleave(actions, 4, 1, "cpu")
    assert "".join(calls) == 5 * "ABC"
    assert {spread.repeats for spread in spreads.values()} == {4}
    clock = iter((0.0, 1.0, 10.0, 12.0, 20.0, 24.0)).__next__
    assert bench.measure.interleave({"": calls.clear}, 3, 0, "cpu", clock)[""].median == 2
    spread = bench.measure.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.least, spread.lower, spread.median, spread.upper) == (1, 2, 3, 4)


PEAKS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from measure import peak_memory
held = torch.ones(1 << 24)  # 64 MiB that are there before
double = lambda: float((held + 1).sum())
double()
print(*(peak_memory(action, "cpu") / 2**20 for action in (double, lambda: None, double)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from Linux")
def test_peak_memory_is_that_of_the_call() -> None:
    # in a fresh process, warmed up, as its docstring asks: the memory of this one is full of what tests gave back
    run = subprocess.run([sys.executable, "-c", PEAKS, str(BENCH)], capture_output=True, text=True, check=True)
    first, nothing, again = (float(word) for word in run.stdout.split())
    assert first == pytest.approx(64, abs=4)
    assert nothing < 4
    assert again == pytest.approx(64, abs=4)


@pytest.mark.slow
def test_peak_memory_of_a_process_of_its_own_grows_with_length(bench: SimpleNamespace) -> None:
    short, long = (bench.peak_of_variant.measure_apart(bench.cases.Case(T), "linear")["both"] for T in (1024, 4096))
    assert long == pytest.approx(4 * short, rel=0.2)


def test_errors_of_16_bits_are_those_before_the_last_rounding(bench: SimpleNamespace, kernels: str) -> None:
    """In float16, which the interpreter rounds as a card does; rounding the exact output alone is 2e-4."""
    made = bench.cases.make_operands(bench.cases.Case(20, heads=1, size=16, dtype="float16", device=kernels))
    truth = bench.accuracy.find_truth(made)
    variant = bench.variants.find("triton@1e-6")
    errors = bench.accuracy.find_errors(variant, made, truth)
    rounded = bench.accuracy.output_errors(variant.run(made), truth)
    assert rounded.output > 1e-4
    assert errors.output < 2e-5
    assert errors.gradients["query"] < 2e-5  # the adjoint solution; those of keys and values sum 11-bit products
    assert max(errors.gradients.values()) < 6e-4


def test_the_peers_kernel_writes_float32_when_asked_for_errors(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in computes exactly, casts as the peer does, and writes into memory like the values."""

    def stand_in(operands: Any) -> torch.Tensor:
        cast = operands._replace(query=operands.query.half(), key=operands.key.half())
        result = mesa_attention(*(x.double() for x in cast), backend="exact")
        return result.to(torch.empty_like(operands.value).dtype)

    made = bench.cases.make_operands(bench.cases.Case(20, heads=1, size=8, dtype="bfloat16"))
    variant = bench.variants.Variant("fla", stand_in, True, tuple(range(6)))
    errors = bench.accuracy.find_errors(variant, made, bench.accuracy.find_truth(made))
    assert stand_in(made).dtype == torch.bfloat16
    assert errors.output < 1e-6  # unit vectors of bfloat16 are numbers of float16, but for the smallest
    assert max(errors.gradients[name] for name in ("query", "key", "log_forget")) < 1e-3  # rounded to 11 bits

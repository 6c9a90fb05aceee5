"""Hold the chunked operator to the oracle on a grid of keys, gates, ridges, sizes and layouts, in both precisions.

Errors are |a - b| / |b| of each whole tensor against the oracle in float64. Beside each float32 error stands e, the
error of the oracle run wholly in float32 on the same operands: what the problem itself makes of rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable

import pytest
import torch
from operator_cases import (
    DATA,
    FACTORS,
    LONG_FACTORS,
    OUTPUTS,
    RECORDED,
    WHOLE_PRODUCT,
    Case,
    Operands,
    affordable,
    affordable_slowly,
    attend,
    condition_number,
    covering_cases,
    make_operands,
    recorded_operands,
    relative_error,
    whole_grid,
)
from pair_covering import covering, level_pairs
from torch import Tensor

from mesalm.model.mesa_solver import METHODS

FLOAT64_TOLERANCE = 1e-10
FLOAT64_CONDITION = 1e4  # the bounds of float64 hold below it, and grow in proportion above it
FLOAT64_BOUND, FLOAT64_FORGET_BOUND = 1e-8, 1e-7  # the gradient of log_forget is a difference of large sums
FLOAT32_TOLERANCE = 1e-4  # the default
FLOAT32_BOUND, FLOAT32_GRADIENT_BOUND, FLOAT32_TIMES = 1e-4, 1e-3, 3.0
# Forced onto heads that forget within a chunk, the shared factor takes hundreds of products, which multiply what
# float32 rounds off; "auto" never chooses it there. In float64 its algebra is held to the bounds everywhere.
HELD = {torch.float64: METHODS, torch.float32: ("auto", "cg")}


class Reference:
    """Hold the oracle's results in float64, the errors e of the oracle in float32, and the condition number."""

    def __init__(self, operands: Operands) -> None:
        self.operands = operands
        self.condition = condition_number(operands)
        self.exact = attend(operands, "exact", torch.float64)

    @functools.cached_property
    def rounding(self) -> dict[str, float]:
        return errors(attend(self.operands, "exact", torch.float32), self.exact)

    def bounds(self, dtype: torch.dtype) -> dict[str, float]:
        """Return the largest error allowed of each tensor."""
        if dtype == torch.float64:
            growth = max(1.0, self.condition / FLOAT64_CONDITION)
            return {
                name: growth * (FLOAT64_FORGET_BOUND if name == "log_forget" else FLOAT64_BOUND) for name in self.exact
            }
        return {
            name: max(FLOAT32_BOUND if name in OUTPUTS else FLOAT32_GRADIENT_BOUND, FLOAT32_TIMES * e)
            for name, e in self.rounding.items()
        }


def errors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    assert got.keys() == wanted.keys()
    return {name: relative_error(got[name], wanted[name]) for name in wanted}


@functools.lru_cache(maxsize=1)  # the tests of one case follow one another
def reference_of(case: Case) -> Reference:
    return Reference(make_operands(case))


def check(reference: Reference, dtype: torch.dtype, title: str) -> None:
    """Print the errors of every way to solve that is held to bounds, and fail with all that are above theirs."""
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    bounds, failures = reference.bounds(dtype), []
    single = dtype == torch.float32
    print(f"{title} {dtype} condition {reference.condition:.2g}")
    for method in HELD[dtype]:
        found = errors(attend(reference.operands, "torch", dtype, tolerance, method=method), reference.exact)
        for name, error in found.items():
            beside = f" e {reference.rounding[name]:.1e}" if single else ""
            line = f"{method:6} {name:10} error {error:.1e}{beside} bound {bounds[name]:.1e}"
            print(line)
            if not error <= bounds[name]:
                failures.append(line)
    assert not failures, "\n".join((f"{title} {dtype} condition {reference.condition:.2g}", *failures))


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@DTYPES
@pytest.mark.parametrize("case", covering_cases(), ids=str)
def test_every_pair_of_factors(case: Case, dtype: torch.dtype) -> None:
    check(reference_of(case), dtype, str(case))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the oracle takes minutes for 8,192 tokens
@DTYPES
@pytest.mark.parametrize("case", whole_grid(), ids=str)
def test_the_whole_grid(case: Case, dtype: torch.dtype) -> None:
    """The product of all keys, gammas and ridges in both precisions; sizes and layouts rotate, all pairs of levels met.

    The product of all ten factors would be 16 million cases.
    """
    check(reference_of(case), dtype, str(case))


UPSTREAM_CASES = [
    Case("iid", "0.999", "1%", "0.1", "random", 24, 40, "4/2", 200, "packed state"),
    Case("correlated", "1", "none", "1", "1", 24, 8, "1/1", 200, "one row"),
    Case("nearly identical", "0.9", "none", "0.01", "random", 24, 40, "2/2", 130, "two rows"),
    Case("repeated", "by token", "5%", "spread", "zeros and ones", 64, 8, "3/1", 130, "state"),
]


@DTYPES
@pytest.mark.parametrize("case", UPSTREAM_CASES, ids=str)
def test_errors_do_not_depend_on_the_size_of_the_upstream_gradient(case: Case, dtype: torch.dtype) -> None:
    """From 1e0 to 1e-9, by powers of two: these round nothing, so that only a guard with a size of its own can show."""
    reference = reference_of(case)
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    first: dict[str, float] = {}
    for scale in (2.0 ** -round(n / math.log10(2.0)) for n in range(10)):
        got = attend(reference.operands, "torch", dtype, tolerance, scale=scale)
        scaled = {name: x if name in OUTPUTS else x / scale for name, x in got.items()}
        found = errors(scaled, reference.exact)
        first = first or found
        # What falls under the smallest normal number may go: that is rounding, not more.
        assert found == pytest.approx(first, rel=1e-3, abs=torch.finfo(dtype).eps), scale


@DTYPES
@pytest.mark.parametrize(("name", "tokens"), [("recorded_short", 256), ("recorded_long", 320)])
def test_operands_of_trained_models(name: str, tokens: int, dtype: torch.dtype) -> None:
    for layer, operands in enumerate(recorded_operands(name, tokens)):
        check(Reference(operands), dtype, f"{name} layer {layer}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@DTYPES
def test_whole_context_of_a_trained_model(dtype: torch.dtype) -> None:
    """Head by head, since the oracle keeps T * K * K numbers of each."""
    for head in range(recorded_operands("recorded_long", 1)[0].tokens[1].shape[2]):
        for layer, operands in enumerate(recorded_operands("recorded_long", 1_000_000, slice(head, head + 1))):
            check(Reference(operands), dtype, f"recorded_long layer {layer} head {head}")


def test_the_recorded_operands_are_those_named_here() -> None:
    assert {file.stem for file in DATA.glob("recorded_*.safetensors")} == set(RECORDED)


def met(cases: list[Case]) -> set[frozenset[tuple[str, Hashable]]]:
    rows = (case._asdict().items() for case in cases)
    return {frozenset(pair) for row in rows for pair in itertools.combinations(row, 2)}


def test_the_sample_covers_every_affordable_pair() -> None:
    cases = covering_cases()
    pairs = level_pairs(FACTORS, affordable)
    unaffordable = [pair for pair in level_pairs(FACTORS, lambda *_: True) if not affordable(*pair)]
    assert met(cases) == {frozenset(pair) for pair in pairs}
    assert {(a[0], b[0]) for a, b in unaffordable} == {("K", "T"), ("V", "T")}
    assert len(cases) < 100
    assert cases == covering_cases()


def test_the_whole_grid_holds_its_product_and_every_pair() -> None:
    cases = whole_grid()
    product = set(itertools.product(*(LONG_FACTORS[name] for name in WHOLE_PRODUCT)))
    assert {tuple(getattr(case, name) for name in WHOLE_PRODUCT) for case in cases} == product
    assert {frozenset(pair) for pair in level_pairs(LONG_FACTORS, affordable_slowly)} == met(cases)
    assert math.prod(len(levels) for levels in LONG_FACTORS.values()) > 10**7


def test_covering_is_small_and_whole_where_the_best_is_known() -> None:
    """Four factors of three levels need nine rows (a Latin square); greedy choice takes a few more."""
    factors = dict.fromkeys("abcd", range(3))
    rows = covering(factors, lambda *_: True)
    found = {pair for row in rows for pair in itertools.combinations(row.items(), 2)}
    assert len(found) == 6 * 9
    assert 9 <= len(rows) <= 14
    begun = covering(factors, lambda *_: True, [{"b": 1, "d": 1}] * 2)
    assert [(row["b"], row["d"]) for row in begun[:2]] == [(1, 1)] * 2
    assert covering({"a": (1, 2), "b": (1, 2)}, lambda one, other: one[1] != other[1]) == [
        {"a": 1, "b": 2},
        {"a": 2, "b": 1},
    ]

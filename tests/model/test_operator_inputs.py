"""Check that every bad argument gets one line that names it, says what it was and what it must be."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mesalm.model.operator_inputs import unchecked_values
from mesalm.model.operator_kalman import kalman_attention
from mesalm.model.operator_linear import delta_rule, linear_attention
from mesalm.model.operator_mesa import mesa_attention


def good() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "query": torch.randn(2, 5, 4, 3, generator=generator),
        "key": torch.randn(2, 5, 2, 3, generator=generator),
        "value": torch.randn(2, 5, 2, 6, generator=generator),
        "log_forget": -torch.rand(2, 5, 2, generator=generator),
        "input_gate": torch.rand(2, 5, 2, generator=generator),
    }


def put(name: str, value: float) -> Any:
    """Write one bad value in the middle of an argument."""
    x = good()[name].clone()
    x.view(-1)[x.numel() // 2] = value
    return x


nan, inf = float("nan"), float("inf")
BOTH = [
    ("query", [1.0], r"query is a list: must be a tensor \[B, T, H, K\]"),
    ("query", torch.zeros(2, 5, 12), r"query is of shape \[2, 5, 12\]: must be \[B, T, H, K\]"),
    ("query", torch.zeros(2, 5, 4, 3).int(), r"query is of dtype torch.int32: must be float32, float64"),
    ("query", torch.zeros(2, 5, 3, 3), r"key is of 2 heads: must be .* divides the 3 heads of query"),
    ("key", torch.zeros(2, 5, 2, 4), r"key is of shape \[2, 5, 2, 4\]: must be .*\[2, 5, G, 3\]"),
    ("key", torch.zeros(2, 4, 2, 3), r"key is of shape \[2, 4, 2, 3\]: must be .*\[2, 5, G, 3\]"),
    ("key", torch.zeros(2, 5, 2, 3).double(), r"key is of dtype torch.float64: must be of dtype torch.float32"),
    ("value", torch.zeros(2, 5, 1, 6), r"value is of shape \[2, 5, 1, 6\]: must be .*\[2, 5, 2, V\]"),
    ("value", torch.zeros(2, 5, 2, 6).half(), r"value is of dtype torch.float16: must be of dtype torch.float32"),
    ("value", torch.zeros(2, 5, 2, 0), r"sizes above 0"),
    ("key", torch.zeros(2, 5, 2, 3, device="meta"), r"key is on meta: must be on cpu, where query is"),
    ("query", put("query", nan), r"query is NaN somewhere: must be finite"),
    ("key", put("key", inf), r"key is infinite somewhere: must be finite"),
    ("value", put("value", nan), r"value is NaN somewhere: must be finite"),
    ("log_forget", torch.zeros(2, 5), r"log_forget is of shape \[2, 5\]: must be \[B, T, G\]"),
    ("log_forget", torch.zeros(2, 5, 4), r"log_forget is of shape \[2, 5, 4\]: must be .*\[2, 5, 2\]"),
    ("log_forget", put("log_forget", 0.25), r"log_forget is 0.25 somewhere: must be at most 0"),
    ("log_forget", put("log_forget", nan), r"log_forget is NaN somewhere: must be at most 0"),
    ("log_forget", torch.zeros(2, 5, 2).long(), r"log_forget is of dtype torch.int64"),
    ("input_gate", torch.zeros(2, 5, 2, 1), r"input_gate is of shape \[2, 5, 2, 1\]"),
    ("input_gate", put("input_gate", 1.5), r"input_gate is 1.5 somewhere: must be between 0 and 1"),
    ("input_gate", put("input_gate", -0.5), r"input_gate is -0.5 somewhere: must be between 0 and 1"),
    ("input_gate", put("input_gate", nan), r"input_gate is NaN somewhere: must be between 0 and 1"),
    ("cu_seqlens", torch.tensor([0, 5]), r"query is of batch size 2: must be of batch size 1"),
    ("cu_seqlens", [0, 5], r"cu_seqlens is a list: must be a one-dimensional int32 or int64 tensor"),
    ("cu_seqlens", torch.tensor([0.0, 5.0]), r"cu_seqlens is torch.float32 of shape \[2\]"),
    ("backend", "cuda", r"backend is 'cuda': must be one of 'auto', 'exact', 'torch'"),
]
MESA = [
    ("ridge", 0.0, r"ridge is 0.0: must be above 0 and finite"),
    ("ridge", -1, r"ridge is -1: must be above 0 and finite"),
    ("ridge", nan, r"ridge is nan: must be above 0 and finite"),
    ("ridge", "1", r"ridge is a str: must be a number, \[G\] or \[G, K\]"),
    ("ridge", True, r"ridge is a bool"),
    ("ridge", torch.ones(4), r"ridge is of shape \[4\]: must be .* with G = 2 and K = 3"),
    ("ridge", torch.ones(2).long(), r"ridge is of dtype torch.int64"),
    ("ridge", torch.tensor([1.0, 0.0]), r"ridge is 0 somewhere: must be above 0"),
    ("ridge", torch.tensor([1.0, inf]), r"ridge is inf somewhere: must be above 0 and finite"),
    ("ridge", torch.tensor([1.0, nan]), r"ridge is NaN somewhere"),
    ("ridge", 1e-50, r"ridge is 1e-50: must be above 0 and finite in torch.float32, 1.2e-38 to 3.4e\+38"),
    ("ridge", 1e39, r"ridge is 1e\+39: must be above 0 and finite in torch.float32"),
    ("ridge", torch.tensor([1.0, 1e-50], dtype=torch.float64), r"ridge is 1e-50 somewhere: must be above 0"),
    ("ridge", torch.tensor([1.0, 1e50], dtype=torch.float64), r"ridge is 1e\+50 somewhere: must be above 0"),
    ("tolerance", 0.0, r"tolerance is 0.0: must be a number between 0 and 1"),
    ("tolerance", 1.0, r"tolerance is 1.0: must be"),
    ("tolerance", nan, r"tolerance is nan: must be"),
    ("tolerance", "low", r"tolerance is low: must be"),
    ("max_steps", 0, r"max_steps is 0: must be a whole number of at least 1, or None"),
    ("max_steps", 2.5, r"max_steps is 2.5: must be"),
    ("method", "jacobi", r"method is 'jacobi': must be one of 'auto', 'shared', 'chebyshev', 'cg'"),
    ("return_report", "all", r"return_report is 'all': must be one of False, True, 'steps'"),
    ("backend", "triton", r"backend is 'triton', which cannot run this call \(.*not on cpu.*TRITON_INTERPRET=1.*\)"),
    ("initial_state", torch.zeros(2, 2, 3, 3), r"initial_state is a Tensor: must be a MesaState"),
    ("initial_state", (torch.zeros(2, 3, 3), torch.zeros(2, 2, 3, 6)), r"initial_state.gram is of shape \[2, 3, 3\]"),
    (
        "initial_state",
        (torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 6, 3)),
        r"initial_state.cross is of shape \[2, 2, 6, 3\]: must be \[B, G, K, V\] = \[2, 2, 3, 6\]",
    ),
    (
        "initial_state",
        (torch.zeros(2, 2, 3, 3).half(), torch.zeros(2, 2, 3, 6)),
        r"initial_state.gram is of dtype torch.float16: must be float32 or float64",
    ),
    (
        "initial_state",
        (torch.zeros(2, 2, 3, 3) + nan, torch.zeros(2, 2, 3, 6)),
        r"initial_state.gram is NaN somewhere: must be finite",
    ),
]
KALMAN = [
    ("mix", 0.5, r"mix is a float: must be a tensor \[B, T, H\]"),
    ("mix", torch.ones(2, 5, 1), r"mix is of shape \[2, 5, 1\]: must be \[B, T, H\] = \[2, 5, 4\]"),
    ("mix", torch.full((2, 5, 4), 1.5), r"mix is 1.5 somewhere: must be between 0 and 1"),
    ("mix", torch.full((2, 5, 4), nan), r"mix is NaN somewhere: must be between 0 and 1"),
    ("ratio", 0.0, r"ratio is 0.0: must be a finite number above 0"),
    ("ratio", -1, r"ratio is -1: must be"),
    ("ratio", nan, r"ratio is nan: must be"),
    ("ratio", "1", r"ratio is '1': must be"),
    ("steps", 0, r"steps is 0: must be a whole number of at least 1"),
    ("steps", 2.5, r"steps is 2.5: must be"),
]


def message(operator: Any, **changes: Any) -> str:
    with pytest.raises(ValueError, match="must be") as caught:
        operator(**{**good(), **changes})
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("name", "bad", "pattern"), BOTH)
@pytest.mark.parametrize("operator", [mesa_attention, linear_attention, delta_rule])
def test_all_operators_refuse(operator: Any, name: str, bad: Any, pattern: str) -> None:
    assert re.search(pattern, message(operator, **{name: bad}))


@pytest.mark.parametrize(("name", "bad", "pattern"), MESA)
def test_mesa_refuses(name: str, bad: Any, pattern: str) -> None:
    assert re.search(pattern, message(mesa_attention, **{name: bad}))


@pytest.mark.parametrize(
    ("name", "bad", "pattern"),
    [*(row for row in BOTH if row[0] in good()), *(row for row in MESA if row[0] == "initial_state"), *KALMAN],
)
def test_kalman_refuses(name: str, bad: Any, pattern: str) -> None:
    assert re.search(pattern, message(kalman_attention, **{name: bad}))


def test_linear_refuses_its_state() -> None:
    text = message(linear_attention, initial_state=torch.zeros(2, 2, 3, 3))
    assert text == "initial_state is of shape [2, 2, 3, 3]: must be [B, G, K, V] = [2, 2, 3, 6], one row per sequence"


@pytest.mark.parametrize("bounds", [[1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [5]])
@pytest.mark.parametrize("operator", [mesa_attention, linear_attention, delta_rule])
def test_bounds_that_are_no_bounds(operator: Any, bounds: list[int]) -> None:
    one = {name: x[:1] for name, x in good().items()}
    with pytest.raises(ValueError, match=r"cu_seqlens is .*must be"):
        operator(**one, cu_seqlens=torch.tensor(bounds))


@pytest.mark.parametrize("operator", [mesa_attention, linear_attention, delta_rule])
def test_edges_of_the_ranges_are_fine(operator: Any) -> None:
    inputs = good()
    inputs["log_forget"] = torch.tensor([0.0, -0.0, -torch.inf, -1e38, -1e-45]).view(1, 5, 1).expand(2, 5, 2)
    inputs["input_gate"] = torch.tensor([0.0, 1.0, 1e-45, 0.0, 1.0]).view(1, 5, 1).expand(2, 5, 2)
    assert torch.isfinite(operator(**inputs)).all()
    # The sum of float16 numbers leaves float16's range long before any of them does.
    wide = {name: torch.full_like(inputs[name], 6e4).half() for name in ("query", "key", "value")}
    operator(**{**inputs, **wide})


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "log_forget", "input_gate"])
@pytest.mark.parametrize("operator", ["torch", "exact", "linear", "delta"])
def test_unchecked_bad_values_reach_the_output_and_the_gradient(operator: str, name: str, bad: float) -> None:
    arguments = {**good(), name: put(name, bad)}
    arguments = {key: tensor.requires_grad_() for key, tensor in arguments.items()}
    with unchecked_values():
        if operator in ("linear", "delta"):
            output = {"linear": linear_attention, "delta": delta_rule}[operator](**arguments)
        else:
            output = mesa_attention(**arguments, ridge=torch.ones(2, 3), backend=operator)
        output.sum().backward()
    assert not bool(output.isfinite().all())
    assert not all(bool(tensor.grad.isfinite().all()) for tensor in arguments.values())

"""Alarms on the numbers of logged steps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tiny import tiny_model

from mesalm.journal import read_journal
from mesalm.train.recorder import Alarms
from mesalm.train.step import sample_solver, solver_fields

QUIET: dict[str, Any] = dict.fromkeys(
    ("solver_layer", "solver_head", "solver_misses", "input_gate", "forget_gate", "saturated_forget_gates")
)


def test_a_gradient_far_above_the_last_ones_is_told_once() -> None:
    alarms = Alarms()
    told = [alarms.raised({**QUIET, "gradient_norm": norm}) for norm in [1.0] * 10 + [9.0, 11.0, 12.0]]
    assert told[:11] == [[]] * 11
    assert told[11] == [{"alarm": "gradient norm", "value": 11.0}]
    assert told[12] == []


def test_a_gradient_that_is_not_finite_hides_no_other() -> None:
    alarms = Alarms()
    norms = [*[1.0] * 6, float("nan"), *[1.0] * 6, 20.0]
    told = [alarms.raised({**QUIET, "gradient_norm": norm}) for norm in norms]
    assert [bool(found) for found in told] == [False] * 13 + [True]


def test_gates_and_solver_are_told_by_head() -> None:
    model = tiny_model(mixers="mesa", tolerance=1e-4)
    mixer = model.model.layers[1].mixer
    ids = torch.randint(5, 61, (2, 70))

    def told() -> list[dict[str, Any]]:
        for number in (1, 3):  # heads 0 and 1 of layer 1
            sampled = sample_solver(model, number)
            with torch.no_grad():
                model(input_ids=ids)
            fields = solver_fields(model, sampled)
            yield alarms.raised({"gradient_norm": 1.0, **fields})

    alarms = Alarms()
    assert list(told()) == [[], []]
    with torch.no_grad():
        mixer.input_proj.bias[1] = -50.0
        mixer.forget_proj.bias[0] = -50.0
    forgets, writes = told()
    assert [(alarm["alarm"], alarm["layer"], alarm["head"]) for alarm in forgets] == [("forget gate shut", 1, 0)]
    assert [(alarm["alarm"], alarm["layer"], alarm["head"]) for alarm in writes] == [("input gate shut", 1, 1)]
    assert list(told()) == [[], []]
    missed = alarms.raised({**QUIET, "gradient_norm": 1.0, "solver_layer": 1, "solver_head": 0, "solver_misses": 0.5})
    assert missed == [{"alarm": "solutions out of tolerance", "value": 0.5, "layer": 1, "head": 0}]


def test_forget_gates_of_all_layers_are_told_but_where_documents_begin() -> None:
    model = tiny_model(mixers=["mesa", "linear", "softmax"], num_hidden_layers=3, forget_cap=None)
    with torch.no_grad():
        for layer, biases in ((0, (0.0, 8.0)), (1, (2.0, -8.0))):  # a number per head
            model.model.layers[layer].mixer.forget_proj.weight.zero_()
            model.model.layers[layer].mixer.forget_proj.bias.copy_(torch.tensor(biases))
        sampled = sample_solver(model, 1)
        positions = torch.cat((torch.arange(30), torch.arange(40))).repeat(2, 1)
        model(input_ids=torch.randint(5, 61, (2, 70)), position_ids=positions)
    fields = solver_fields(model, sampled)
    gates = torch.tensor([0.0, 8.0, 2.0, -8.0], dtype=torch.float64).sigmoid()
    assert abs(fields["mean_forget_gate"] - float(gates.mean())) < 1e-6
    assert fields["saturated_forget_gates"] == 0.5
    alarms = Alarms()
    assert alarms.raised({**QUIET, "gradient_norm": 1.0, "saturated_forget_gates": 0.5}) == []
    told = [alarms.raised({**QUIET, "gradient_norm": 1.0, "saturated_forget_gates": share}) for share in (0.97, 0.99)]
    assert told == [[{"alarm": "forget gates saturated", "value": 0.97}], []]


def test_a_model_without_gates_tells_none() -> None:
    model = tiny_model(mixers="softmax")
    fields = solver_fields(model, sample_solver(model, 1))
    assert fields["mean_forget_gate"] is None
    assert fields["saturated_forget_gates"] is None


def test_an_alarm_has_a_line_in_the_journal(train_regression: Callable[..., SimpleNamespace]) -> None:
    class Steep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = torch.nn.Parameter(torch.ones(4)), 0

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            self.calls += 1
            return SimpleNamespace(loss=(x @ self.weight).square().mean() * (1e4 if self.calls == 15 else 1.0))

    run = train_regression("run", steps=20, model=Steep())
    lines = [line for line in read_journal(run.path / "journal.jsonl") if line["event"] == "alarm"]
    assert [(line["step"], line["alarm"]) for line in lines] == [(15, "gradient norm")]

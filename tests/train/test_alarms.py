"""Alarms on the numbers of logged steps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tiny import tiny_model

from mesalm.journal import read_journal
from mesalm.train.alarms import Alarms
from mesalm.train.step import sample_solver, solver_fields

QUIET: dict[str, Any] = dict.fromkeys(("solver_layer", "solver_head", "solver_misses", "input_gate", "forget_gate"))


def test_a_gradient_far_above_the_last_ones_is_told_once() -> None:
    alarms = Alarms()
    told = [alarms.raised({**QUIET, "gradient_norm": norm}) for norm in [1.0] * 10 + [9.0, 11.0, 12.0]]
    assert told[:11] == [[]] * 11
    assert told[11] == [{"alarm": "gradient norm", "value": 11.0}]
    assert told[12] == []


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

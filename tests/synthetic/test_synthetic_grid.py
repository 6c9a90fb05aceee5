"""Grids of synthetic tasks: what is planned, what is run once, stopped, taken up, shared and left out."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY

from mesalm.interrupts import Interrupted
from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.synthetic.grid import run_grid
from mesalm.synthetic.recipe import (
    SyntheticRecipe,
    best_rate,
    load_synthetic_recipe,
    planned_cells,
    planned_count,
    synthetic_help,
)
from mesalm.synthetic.results import read_results, write_results
from mesalm.train.recipe import recipe_names

GRID: dict[str, Any] = {
    "name": "tiny",
    "task": {"name": "mqar", "vocabulary": 16, "length": 8, "pairs": 2, "train_rows": 20},
    "model": {**TINY, "num_hidden_layers": 1},
    "train": {"steps": 6, "batch_rows": 4, "device": "cpu", "log_every": 1},
    "score": {"every": 2, "valid_rows": 4, "test_rows": 8, "enough": None},
    "checkpoint": {"every": 2},
    "arms": {"softmax": {"model.mixers": "softmax"}},
}


@dataclass
class Score:
    """A score that is the sum of the weights, so that it tells two models apart to the last bit."""

    value: float
    better: str = "higher"

    def plain(self) -> dict[str, Any]:
        return {"measures": []}


@dataclass
class Scoring:
    """Count the calls, and do something at one of them."""

    calls: int = 0
    at: int = -1
    act: Callable[[], None] = lambda: None

    def __call__(
        self, model: torch.nn.Module, task: Any, split: Any, rows: int, *, seed: int, batch_rows: int
    ) -> Score:
        assert not model.training
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return Score(sum(float(parameter.double().sum()) for parameter in model.parameters()))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SyntheticRecipe]:
    def run(*overrides: str, **changes: Any) -> SyntheticRecipe:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**GRID, "output_dir": str(tmp_path / "runs"), **changes}, sort_keys=False))
        return load_synthetic_recipe(str(path), overrides)

    return run


def results(recipe: SyntheticRecipe) -> dict[str, dict[str, Any]]:
    return read_results(recipe.folder / "cells")


def test_the_plan_is_arms_by_grid_by_rates_and_other_seeds_wait_for_the_best_rate(load: Any) -> None:
    recipe = load(
        arms={"mesa": {"model.mixers": "mesa"}, "softmax": {"model.mixers": "softmax", "task.power": 0.5}},
        grid={"size": {"8, 2": {}, "16, 4": {"task.length": 16, "task.pairs": 4}}, "model.intermediate_size": [8, 16]},
        learning_rates=[1e-3, 1e-2, 1e-1],
        seeds=[0, 1, 2],
    )
    settings = recipe.settings()
    assert [setting.arm for setting in settings] == ["mesa", "softmax"] * 4
    assert settings[-1].point == {"size": "16, 4", "model.intermediate_size": "16"}
    assert settings[-1].run.task == {**GRID["task"], "length": 16, "pairs": 4, "power": 0.5}
    assert settings[-1].run.model == {**GRID["model"], "intermediate_size": 16, "mixers": "softmax"}
    assert planned_count(recipe) == 8 * (3 + 2)
    sweep = list(planned_cells(recipe, {}))
    assert len(sweep) == len({cell.folder_name for cell in sweep}) == 8 * 3
    valid = {1e-3: 0.2, 1e-2: 0.9, 1e-1: 0.4}
    done = {cell.folder_name: {"valid": valid[cell.rate], "steps": 6, "better": "higher"} for cell in sweep}
    cells = list(planned_cells(recipe, done))
    assert len(cells) == planned_count(recipe)
    assert {cell.rate for cell in cells if cell.seed > 0} == {1e-2}
    done.pop(sweep[0].folder_name)
    assert len(list(planned_cells(recipe, done))) == planned_count(recipe) - 2


def test_arms_and_points_may_have_learning_rates_of_their_own(load: Any) -> None:
    arms = {"one": {}, "other": {"optim.learning_rate": 0.25}}
    recipe = load(arms=arms, grid={"scheme": {"a": {}, "b": {"optim.learning_rate": 0.5}}}, optim={"learning_rate": 1})
    assert [cell.rate for cell in planned_cells(recipe, {})] == [1, 0.25, 0.5, 0.25]
    with pytest.raises(SettingsError, match=r"^other: optim\.learning_rate: learning_rates lists the rates to try"):
        load(arms=arms, learning_rates=[1, 2])


def test_a_cell_is_named_by_what_decides_its_outcome(load: Any) -> None:
    def name(**changes: Any) -> str:
        return next(planned_cells(load(**changes), {})).folder_name

    train, optim = GRID["train"], {"weight_decay": 0.5}
    same = {"train": {**train, "device": "auto", "log_every": 3}, "name": "other", "checkpoint": {"every": 1}}
    assert name(**same) == name()
    others = [{"optim": optim}, {"train": {**train, "steps": 7}}, {"task": {**GRID["task"], "power": 0.02}}]
    others += [{"learning_rates": [0.5]}, {"seeds": [1]}, {"score": {**GRID["score"], "enough": 0.9}}]
    names = [name(), *(name(**other) for other in others)]
    assert len(set(names)) == len(names)


def test_the_best_rate_is_of_the_valid_rows_and_diverged_runs_lose() -> None:
    def run(valid: float | None, steps: int = 10, better: str = "higher") -> dict[str, Any]:
        return {"valid": valid, "steps": steps, "better": better}

    assert best_rate([(1.0, run(0.5)), (2.0, run(0.7)), (3.0, run(None))]) == 2.0
    assert best_rate([(1.0, run(0.5, better="lower")), (2.0, run(0.7, better="lower"))]) == 1.0
    assert best_rate([(1.0, run(0.7)), (1.0, run(0.1)), (2.0, run(0.5)), (2.0, run(0.5))]) == 2.0
    assert best_rate([(1.0, run(0.9)), (1.0, run(None)), (2.0, run(0.5)), (2.0, run(0.5))]) == 2.0
    assert best_rate([(1.0, run(0.99, 90)), (2.0, run(0.99, 40))]) == 2.0
    assert best_rate([(2.0, run(None)), (1.0, run(None))]) == 1.0


def test_a_finished_cell_is_not_run_again_and_a_new_one_joins_it(load: Any) -> None:
    recipe, scoring = load(), Scoring()
    run_grid(recipe, scoring, quiet=True)
    assert scoring.calls == 3 + 2  # every two of six steps, then valid and test
    (result,) = results(recipe).values()
    assert result["steps"] == 6
    assert not list(recipe.folder.glob("cells/*/checkpoints"))
    events = [event["event"] for event in read_journal(next(recipe.folder.glob("cells/*/journal.jsonl")))]
    assert events.count("valid") == 3
    assert events[0] == "start"
    assert events[-1] == "end"
    run_grid(recipe, scoring, quiet=True)
    assert scoring.calls == 5
    run_grid(load(seeds=[0, 1]), scoring, quiet=True)
    assert scoring.calls == 10
    assert len(results(recipe)) == 2


def test_interrupted_and_taken_up_it_ends_as_if_it_had_not_been(load: Any) -> None:
    whole, broken = load(name="whole"), load(name="broken")
    run_grid(whole, Scoring(), quiet=True)
    with pytest.raises(Interrupted) as caught:
        run_grid(broken, Scoring(at=1, act=lambda: os.kill(os.getpid(), signal.SIGINT)), quiet=True)
    assert caught.value.code == 130
    assert not results(broken)
    assert list(broken.folder.glob("cells/*/checkpoints/step-*"))
    run_grid(broken, Scoring(), quiet=True)
    (first,), (second,) = results(whole).values(), results(broken).values()
    assert first["score"] == second["score"]
    assert (first["steps"], first["tokens"]) == (second["steps"], second["tokens"])


def test_the_crash_of_one_cell_leaves_the_others(load: Any) -> None:
    def crash() -> None:
        raise MemoryError

    recipe = load(seeds=[0, 1], sweep_seeds=2)
    with pytest.raises(MemoryError):
        run_grid(recipe, Scoring(at=7, act=crash), quiet=True)
    assert [result["seed"] for result in results(recipe).values()] == [0]
    scoring = Scoring()
    run_grid(recipe, scoring, quiet=True)
    assert len(results(recipe)) == 2
    assert scoring.calls == 2 + 2  # from step 2 on


def test_training_stops_when_the_score_is_enough(load: Any) -> None:
    recipe = load(score={**GRID["score"], "enough": -1e9})
    run_grid(recipe, Scoring(), quiet=True)
    (result,) = results(recipe).values()
    assert result["steps"] == 2


def test_a_run_that_was_good_enough_is_only_scored_when_it_is_taken_up(load: Any) -> None:
    def crash() -> None:
        raise MemoryError

    whole, broken = (load(name=name, score={**GRID["score"], "enough": -1e9}) for name in ("whole", "broken"))
    run_grid(whole, Scoring(), quiet=True)
    with pytest.raises(MemoryError):
        run_grid(broken, Scoring(at=3, act=crash), quiet=True)  # the test after the end
    scoring = Scoring()
    run_grid(broken, scoring, quiet=True)
    assert scoring.calls == 2
    (first,), (second,) = results(whole).values(), results(broken).values()
    for key in ("steps", "tokens", "loss", "valid", "score"):
        assert first[key] == second[key], key


def test_longer_rows_are_tested_under_names_of_their_own(load: Any) -> None:
    asked: list[tuple[str, int, int, int]] = []

    class Told(Score):
        def plain(self) -> dict[str, Any]:
            return {"measures": [{"key": "accuracy", "label": "accuracy"}]}

    def score(model: Any, task: Any, split: str, rows: int, *, seed: int, batch_rows: int) -> Score:
        asked.append((split, task.length, rows, batch_rows))
        return Told(1.0)

    recipe = load(score={**GRID["score"], "test_rows": 640, "longer": [4, 100]})
    run_grid(recipe, score, quiet=True)
    assert asked[-3:] == [("test", 8, 640, 64), ("test", 32, 160, 16), ("test", 800, 32, 1)]
    (result,) = results(recipe).values()
    assert [measure["key"] for measure in result["measures"]] == ["accuracy", "accuracy_4x", "accuracy_100x"]
    assert result["measures"][1]["label"] == "accuracy, 4 times the length"
    assert [measure.get("times", 1) for measure in result["measures"]] == [1, 4, 100]


def test_a_run_that_diverges_is_recorded_and_takes_its_rate_out(load: Any) -> None:
    train = {**GRID["train"], "max_skipped": 2, "steps": 30, "clip": None}
    recipe = load(learning_rates=[1e-3, 1e30], train=train, schedule={"name": "constant", "warmup_steps": 0})
    run_grid(recipe, Scoring(), quiet=True)
    by_rate = {result["learning_rate"]: result for result in results(recipe).values()}
    assert by_rate[1e30]["valid"] is None
    assert "not finite" in by_rate[1e30]["diverged"]
    summary = json.loads((write_results(recipe) / "results.json").read_text())
    assert summary["settings"][0]["best_rate"] == 1e-3
    assert [run["rate"] for run in summary["settings"][0]["runs"]] == [1e-3]


def test_a_cell_that_another_process_holds_is_left_to_it(load: Any) -> None:
    recipe = load(seeds=[0, 1], sweep_seeds=2)
    first = next(planned_cells(recipe, {}))
    folder = recipe.folder / "cells" / first.folder_name
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_grid(recipe, Scoring(), quiet=True)
        assert [result["seed"] for result in results(recipe).values()] == [1]
        assert json.loads((write_results(recipe) / "results.json").read_text())["missing"] == 1
    run_grid(recipe, Scoring(), quiet=True)
    assert len(results(recipe)) == 2


def test_fresh_rows_never_come_twice(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mesalm.data.synthetic.associative_recall import AssociativeRecall
    from mesalm.data.synthetic.tasks import TASKS

    seen: list[bytes] = []

    class Watched(AssociativeRecall):
        def row(self, random: Any, split: Any) -> Any:
            row = super().row(random, split)
            if split == "train":
                seen.append(row["input_ids"].tobytes())
            return row

    monkeypatch.setitem(TASKS, GRID["task"]["name"], Watched)
    run_grid(load(task={**GRID["task"], "train_rows": 0}), Scoring(), quiet=True)
    assert len(seen) == len(set(seen)) == 6 * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"name": "mqr"}}, "task.name: 'mqr' is not a synthetic task; did you mean 'mqar'"),
        ({"task": {**GRID["task"], "pair": 3}}, r"task.pair: unknown key; did you mean 'pairs'\? \(task.name: mqar\)"),
        ({"grid": {"task.pairs": [2, 9]}}, "softmax, task.pairs 9: .*pairs: 9 need a length"),
        ({"grid": {"model.hiden_size": [2]}}, "hidden_size"),
        ({"grid": {"task.pairs": []}}, "grid.task.pairs: is empty"),
        ({"grid": {"task.pairs": [1, 1]}}, "grid.task.pairs: names a value twice"),
        ({"arms": {}}, "arms: is empty"),
        ({"arms": {"mesa/2": {}}}, "arms.mesa/2: names a folder, so it cannot contain /"),
        ({"score": {"longer": [1]}}, "score.longer.0: must be above 1|score.longer"),
        (
            {"task": {"name": "compression"}, "score": {"longer": [8]}},
            "score.longer: compression is not tested at other",
        ),
        ({"task": {"name": "automata"}, "score": {"longer": [8]}}, "score.longer: automata is not tested at other"),
        ({"task": {"name": "regression"}, "score": {"longer": [8]}}, "score.longer: regression is not tested at other"),
        ({"seeds": [1, 1]}, "seeds: names a value twice"),
        ({"train": {"tokens": 100}}, "train.steps: must be given"),
        ({"train": {"steps": 1, "z_loss": 0.1}}, "train.z_loss: is for runs of language models only"),
        ({"train": {"steps": 1, "ramp_tokens": 9}}, "train.ramp_tokens: is for runs of language models only"),
        ({"optim": {"base_width": 8}}, "optim.base_width: is for runs of language models only"),
        ({"nam": "x"}, "nam: unknown key; did you mean 'name'"),
    ],
)
def test_a_recipe_that_does_not_serve_is_refused_before_anything_runs(
    load: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", recipe_names("synth"))
def test_packaged_recipes_can_be_run(name: str) -> None:
    recipe = load_synthetic_recipe(name)
    assert recipe.name == name
    assert planned_count(recipe) >= 2


def test_the_help_names_every_field() -> None:
    text = synthetic_help()
    for key in ("learning_rates", "score.enough", "task.pairs [mqar]", "task.states [automata]", "train.steps"):
        assert key in text

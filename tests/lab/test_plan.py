"""The plan of claims: the trainings that a run makes, what is left of them, and which claim comes first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mesalm.cli import main
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab import claim_runs
from mesalm.lab.claims import load_claims
from mesalm.lab.plan import LARGEST_PROBE, ClaimPlan, Cost, PlanningBench, measure, net_training, operations
from mesalm.lab.workbench import NetRecipe, Workbench, learner_of, net_recipe, until
from mesalm.runs import STATE_FILE, RunFiles

TINY: dict[str, Any] = {"size": 2, "length": 8, "fit_rows": 64, "test_rows": 64, "steps": 2, "batch": 4, "layers": 2}
OWN: dict[str, dict[str, Any]] = {
    "few-shot": {"length": 16, "tuning_steps": 2, "prefix": 2},
    "depth": {"steps": [2, 2, 2, 2]},
}


def tiny(name: str) -> dict[str, Any]:
    small = load_claims()[name].small
    return {**small, **{key: value for key, value in TINY.items() if key in small}, **OWN.get(name, {})}


def recipe(**changes: Any) -> NetRecipe:
    sizes = {"steps": 4, "batch": 8, "learning_rate": 1e-2, **changes}
    model = {"hidden_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_hidden_layers": 2, "mixers": "linear"}
    return net_recipe(LinearDynamics(size=2, length=5), sizes, 0, model)


@pytest.mark.parametrize("name", ["depth", "few-shot"])
def test_the_plan_names_the_very_trainings_that_a_run_makes(name: str, tmp_path: Path) -> None:
    bench = PlanningBench(0, tmp_path, quiet=True)
    load_claims()[name].experiment(bench, tiny(name))
    assert not list(tmp_path.iterdir())  # nothing was trained
    planned = dict(bench.found)
    load_claims()[name].experiment(Workbench(0, tmp_path, quiet=True), tiny(name))
    assert {path.name for path in planned} == {path.name for path in tmp_path.iterdir()}
    again = PlanningBench(0, tmp_path, quiet=True)
    load_claims()[name].experiment(again, tiny(name))
    assert all(each.left == each.steps for each in planned.values())
    assert all(each.left == 0 for each in again.found.values())


def test_language_models_of_every_rate_are_planned(tmp_path: Path) -> None:
    bench = PlanningBench(0, tmp_path, quiet=True)
    claim = load_claims()["language-order-v2"]
    claim.experiment(bench, claim.paper | {"learning_rates": [1e-3, 1e-2]})
    assert len(bench.found) == 3 * (2 + 2)  # arms at two rates with the first seed, at one with the two others
    assert all(each.steps == 100_000 for each in bench.found.values())


def test_what_is_left_counts_from_the_newest_checkpoint(tmp_path: Path) -> None:
    checkpoint = RunFiles(tmp_path).checkpoints / "step-00000003"
    checkpoint.mkdir(parents=True)
    assert net_training(recipe(), tmp_path, "cpu").left == 4  # an incomplete one
    (checkpoint / STATE_FILE).write_text("{}", encoding="utf-8")
    assert net_training(recipe(), tmp_path, "cpu").left == 1


def test_work_is_counted_as_by_hand_and_frozen_weights_once() -> None:
    net = recipe().build_net()
    weights = sum(each.numel() for each in net.parameters())
    mixers = sum(layer.mixer.flops(5) for layer in net.layers)
    assert operations(net, 5) == pytest.approx(3 * (2 * weights + mixers))
    assert operations(net.requires_grad_(False), 5) == pytest.approx(2 * weights + mixers)


def test_a_large_step_is_measured_in_part_and_scaled(tmp_path: Path) -> None:
    training = net_training(recipe(batch=64), tmp_path, "cpu")
    whole = measure(training, seconds=0.0)
    rows: list[int] = []

    def batch(count: int, length: int) -> Any:
        rows.append(count)
        return training.batch(count, length)

    part = measure(replace(training, batch=batch), seconds=0.0, largest=whole.work / 4)
    assert rows == [16]
    assert part.work == whole.work < LARGEST_PROBE
    assert part.memory == pytest.approx(whole.memory, rel=0.3)
    assert part.seconds > 0


def test_what_is_decided_soonest_comes_first_and_shared_nets_count_once(tmp_path: Path) -> None:
    short, long = (
        replace(net_training(recipe(), tmp_path / name, "cpu"), left=left) for name, left in (("a", 1), ("b", 9))
    )
    claims = {"both": {short.folder: short, long.folder: long}, "one": {short.folder: short}, "none": {}}
    plan = ClaimPlan(claims, {short.kind: Cost(60.0, 1e9, 2e6)}, "cpu")
    assert plan.order() == ["none", "one", "both"]
    lines = plan.lines()
    assert [line.split()[0] for line in lines[1:4]] == ["none", "one", "both"]
    assert lines[3].split()[1:5] == ["1", "9", "9:00", "10:00"]
    assert "in all: 10:00 of training" in lines[4]
    assert "2 pieces of 300 s" in lines[4]


def test_the_command_plans_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--nets", str(tmp_path / "nets"), "--out", str(tmp_path)]
    sizes = ["steps=3", "batch=4", "test_rows=16"]
    assert main(["lab", "run", "one-layer", "fixed-teacher", *sizes, "--plan", *folders]) == 0
    text = capsys.readouterr().out
    assert "one-layer" in text
    assert "assumed: " in text
    assert not list(tmp_path.iterdir())


def test_results_that_are_there_are_left_out_and_the_cheapest_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: dict[str, Any] = {"out": tmp_path, "nets": tmp_path / "nets", "quiet": True}
    claim_runs.run_claims(["1"], seeds=2, **folders)
    assert claim_runs.run_claims(["1"], missing=True, **folders) == {}
    assert "no result is missing" in capsys.readouterr().out
    assert claim_runs.run_claims(["1"], seeds=3, missing=True, **folders) == {"gradient-step": True}
    assert claim_runs.run_claims(["1"], first_seed=1, missing=True, **folders) == {"gradient-step": True}
    path = tmp_path / "gradient-step-small.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["first_seed"]  # as in results that are older than the option
    path.write_text(json.dumps(content), encoding="utf-8")
    assert claim_runs.run_claims(["1"], missing=True, **folders) == {}
    sizes = {"steps": 2, "batch": 4, "test_rows": 16}
    found = claim_runs.run_claims(["one-layer", "fixed-teacher-v2"], changes=sizes, cheapest_first=True, **folders)
    assert set(found) == {"one-layer", "fixed-teacher-v2"}


def test_a_net_cut_behind_a_layer_gives_the_same_stream(tmp_path: Path) -> None:
    base = recipe()
    net = base.build_net()
    inputs = torch.randn(3, 5, 2)
    whole = net(inputs, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        short = until(net, layer)(inputs, output_hidden_states=True).hidden_states
        assert len(short) == layer + 2
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(short, whole, strict=False))
    assert len(net.layers) == 2
    _, learner = learner_of(base.model_copy(update={"imitates": 0, "base": base}), net)
    assert len(learner.base.layers) == 1

"""Several seeds of one recipe: what is planned, that arms are paired, and that a campaign goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mesalm.cli import main
from mesalm.settings import SettingsError
from mesalm.train.planned import planned_runs, read_seeds
from mesalm.train.run_folder import read_run_recipe


def test_seeds_are_read_as_a_list_or_a_number() -> None:
    assert read_seeds("3") == (0, 1, 2)
    assert read_seeds("0,1,5") == (0, 1, 5)
    assert read_seeds("7,") == (7,)
    assert read_seeds(" 2 , 1 ") == (2, 1)


@pytest.mark.parametrize("text", ["", "0", "a", "1,,2", "-1", "1,1", "1.5", ",", "20240101"])
def test_bad_seeds_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match="seed") as caught:
        read_seeds(text)
    assert "\n" not in str(caught.value)


def test_runs_are_planned_seed_by_seed(recipe_file: Path) -> None:
    runs = planned_runs(str(recipe_file), ["train.steps=2"], ["mesa", "fast"], (0, 4))
    assert [(run.name, run.seed) for run in runs] == [
        ("tiny-mesa-s0", 0),
        ("tiny-fast-s0", 0),
        ("tiny-mesa-s4", 4),
        ("tiny-fast-s4", 4),
    ]
    assert all(run.steps == 2 for run in runs)
    same = [{**run.plain(), "name": "", "seed": 0} for run in runs]
    assert same[0] == same[2] != same[1] == same[3]
    assert [run.name for run in planned_runs(str(recipe_file), ["name=other"], ["fast"], (1,))] == ["other-fast-s1"]
    assert [run.name for run in planned_runs(str(recipe_file))] == ["tiny-fast", "tiny-mesa"]
    arms = ["arms={a: {model.num_attention_heads: 2}, b: {}}", "model.num_attention_heads=4"]  # over those of arm a
    assert [run.name for run in planned_runs(str(recipe_file), [*arms, "model.num_key_value_heads=4"])]
    only = planned_runs(str(recipe_file), ["arms={a: {model.num_attention_heads: 3}, b: {}}"], ["b"])  # of width 32
    assert [run.name for run in only] == ["tiny-b"]
    assert [run.name for run in planned_runs(str(recipe_file), ["arms={}"], None, (3,))] == ["tiny-s3"]
    given = planned_runs(str(recipe_file), ["arms={slow: {optim.learning_rate: 1e-4}}"])
    assert [(run.name, run.optim.learning_rate) for run in given] == [("tiny-slow", 1e-4)]
    with pytest.raises(SettingsError, match=r"arms\.mesa: has the same name as another arm, x"):
        planned_runs(str(recipe_file), ["arms.mesa.name=x", "arms.fast.name=x"], ["mesa", "fast"])


def test_a_seed_is_set_in_one_place(recipe_file: Path) -> None:
    with pytest.raises(SettingsError, match="seed: is set although --seeds is given"):
        planned_runs(str(recipe_file), ["seed=3"], None, (0,))
    with pytest.raises(SettingsError, match=r"arms\.fast: sets seed"):
        planned_runs(str(recipe_file), ["arms.fast={seed: 3}"], None, (0,))
    assert planned_runs(str(recipe_file), ["arms.fast={seed: 3}"], ["mesa"], (0,))


def test_arms_of_a_seed_read_the_same_rows(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding) and torch.is_grad_enabled():
            read.append(inputs[0])

    command = ["train", str(recipe_file), "--seeds", "0,1", "train.steps=2"]
    with register_module_forward_pre_hook(keep):
        assert main(command) == 0
    names = ["tiny-fast-s0", "tiny-mesa-s0", "tiny-fast-s1", "tiny-mesa-s1"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained: ")]
    assert [Path(line.removeprefix("trained: ")).name for line in printed] == names
    steps = [ids for ids in read if ids.shape == (4, 32)]  # other shapes are of what is tried out beforehand
    assert len(steps) == 8
    rows = [torch.cat(steps[place : place + 2]) for place in (0, 2, 4, 6)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])
    assert read_run_recipe(tmp_path / "runs" / "tiny-fast-s1").seed == 1
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/final/model.safetensors"))]
    assert main(command) == 0  # finished runs are left as they are
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/final/model.safetensors"))]


def test_a_run_that_breaks_does_not_take_the_others_along(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = "arms.broken={model.initializer_range: 1.0e+30, train.max_skipped: 1}"
    command = ["train", str(recipe_file), "--seeds", "0,", "--arm", "broken", "--arm", "fast", "train.steps=1", broken]
    assert main(command) == 2
    printed = capsys.readouterr()
    plan, *_, error = printed.err.splitlines()
    assert plan.endswith(": tiny-broken-s0, tiny-fast-s0")
    assert error.startswith("mesalm train: tiny-broken-s0: step 1: loss or gradient were not finite in 1 step in a row")
    assert [Path(line).name for line in printed.out.splitlines() if line.startswith("trained: ")] == ["tiny-fast-s0"]


def test_the_first_of_several_processes_says_what_is_trained(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mesalm.train.pretrain.pretrain", lambda recipe, **more: recipe.folder)
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["train", str(recipe_file), "--arm", "mesa"]) == 0
        printed = capsys.readouterr()
        assert [printed.err.count("to train: "), printed.out.count("trained: ")] == [1 - rank] * 2

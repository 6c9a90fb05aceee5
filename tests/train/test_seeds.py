"""Several seeds of one recipe: what is planned, that arms are paired, and that a campaign goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mesalm.cli import main
from mesalm.data.stream import RowStream
from mesalm.settings import SettingsError
from mesalm.train import pretrain as pretraining
from mesalm.train.guard import NonFiniteError
from mesalm.train.run_folder import read_run_recipe
from mesalm.train.seeds import planned_runs, read_seeds


def test_seeds_are_read_as_a_list_or_a_number() -> None:
    assert read_seeds("3") == (0, 1, 2)
    assert read_seeds("0,1,5") == (0, 1, 5)
    assert read_seeds("7,") == (7,)
    assert read_seeds(" 2 , 1 ") == (2, 1)


@pytest.mark.parametrize("text", ["", "0", "a", "1,,2", "-1", "1,1", "1.5", ","])
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
    assert [run.name for run in planned_runs(str(recipe_file), ["arms={}"], None, (3,))] == ["tiny-s3"]


def test_a_seed_is_set_in_one_place(recipe_file: Path) -> None:
    with pytest.raises(SettingsError, match="seed: is set beside --seeds"):
        planned_runs(str(recipe_file), ["seed=3"], None, (0,))
    with pytest.raises(SettingsError, match=r"arms\.fast: sets seed"):
        planned_runs(str(recipe_file), ["arms.fast={seed: 3}"], None, (0,))
    assert planned_runs(str(recipe_file), ["arms.fast={seed: 3}"], ["mesa"], (0,))


def test_arms_of_a_seed_read_the_same_rows(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[list[torch.Tensor]] = []
    plain = RowStream.__iter__

    def watched(stream: RowStream) -> object:
        orders.append([])
        for batch in plain(stream):
            orders[-1].append(batch["input_ids"])
            yield batch

    monkeypatch.setattr(RowStream, "__iter__", watched)
    command = ["train", str(recipe_file), "--seeds", "0,1", "train.steps=2"]
    assert main(command) == 0
    names = ["tiny-fast-s0", "tiny-mesa-s0", "tiny-fast-s1", "tiny-mesa-s1"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained: ")]
    assert [Path(line.removeprefix("trained: ")).name for line in printed] == names
    assert len(orders) == 4
    rows = [torch.cat(batches) for batches in orders]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])
    assert read_run_recipe(tmp_path / "runs" / "tiny-fast-s1").seed == 1
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/final/model.safetensors"))]
    assert main(command) == 0  # finished runs are left as they are
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/final/model.safetensors"))]


def test_a_run_that_breaks_does_not_take_the_others_along(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def pretrain(recipe: object, resume: str, **_: object) -> str:
        trained.append(recipe.name)
        if recipe.name == "tiny-mesa-s0":
            raise NonFiniteError("the gradient is not finite")
        return recipe.name

    monkeypatch.setattr(pretraining, "pretrain", pretrain)
    assert main(["train", str(recipe_file), "--seeds", "1,0", "--arm", "mesa"]) == 2
    plan, error = capsys.readouterr().err.splitlines()
    assert plan.endswith(": tiny-mesa-s1, tiny-mesa-s0")
    assert error == "mesalm train: tiny-mesa-s0: the gradient is not finite"
    assert trained == ["tiny-mesa-s1", "tiny-mesa-s0"]

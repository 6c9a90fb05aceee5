"""Runs whose processes share rows, against the same runs on one process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.initial import earlier_config
from mesalm.train.launch import data_share
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]
MODEL = (
    "model.attention_dropout=0",
    "model.mixers=[mesa, softmax, linear]",
    "model.num_hidden_layers=3",
    "model.conv_size=4",
    "model.tolerance=1e-6",
)


def launch(start: Start, processes: int, *changes: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    process = start(*MODEL, *changes, launcher=launcher)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(folder / "journal.jsonl") if line["event"] == event]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "more"), [(2, ()), (4, ("train.micro_rows=1", "sample.every=6"))])
def test_processes_that_share_rows_train_as_one(
    processes: int, more: tuple[str, ...], load: Load, start: Start
) -> None:
    launch(start, processes, "name=shared", "parallelism.context=2", "validate.rows=7", *more)
    one, shared = load(*MODEL, "name=one", "validate.rows=7", *more), load("name=shared").folder
    pretrain(one, quiet=True)
    for event in ("step", "valid", "end"):
        found, expected = lines(shared, event), lines(one.folder, event)
        assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1e-5), event
        assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]
    norms = [[line["gradient_norm"] for line in lines(folder, "step")] for folder in (shared, one.folder)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert len(lines(shared, "sample")) == len(lines(one.folder, "sample"))


@pytest.mark.slow
def test_a_run_of_shared_rows_goes_on_as_if_it_had_not_stopped_and_without_sharing(load: Load, start: Start) -> None:
    def run(name: str, steps: int, processes: int = 2, *more: str) -> Path:
        changes = (f"name={name}", "schedule.name=constant", "schedule.warmup_steps=0", f"train.steps={steps}", *more)
        launch(start, processes, f"parallelism.context={processes}", *changes)
        return load(*changes).folder

    whole, parts = run("whole", 8), run("parts", 4)
    moved = parts.parents[1] / "elsewhere"
    shutil.copytree(parts.parent, moved)
    run("parts", 8)
    assert [line["step"] for line in lines(parts, "start")] == [0, 4]
    assert (whole / "final/model.safetensors").read_bytes() == (parts / "final/model.safetensors").read_bytes()
    other = run("parts", 8, 1, f"output_dir={moved}")
    assert [line["step"] for line in lines(other, "start")] == [0, 4]
    losses = [[line["loss"] for line in lines(folder, "step")] for folder in (whole, other)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("processes", "context", "sharded", "words"),
    [(1, 2, False, "set parallelism.context=1"), (3, 2, False, "multiple of 2"), (2, 2, True, "supported with FSDP")],
)
def test_processes_left_over_and_fsdp_are_refused(processes: int, context: int, sharded: bool, words: str) -> None:
    accelerator: Any = SimpleNamespace(num_processes=processes, process_index=0, is_fsdp2=sharded)
    with pytest.raises(SettingsError, match=words) as caught:
        data_share(accelerator, context)
    assert "\n" not in str(caught.value)


def test_processes_that_follow_one_another_share_rows() -> None:
    accelerators: Any = [SimpleNamespace(num_processes=6, process_index=index, is_fsdp2=False) for index in range(6)]
    assert [data_share(each, 3) for each in accelerators] == [(0, 2)] * 3 + [(1, 2)] * 3


def test_it_is_refused_before_anything_is_prepared(load: Load) -> None:
    recipe = load("parallelism.context=2", "model.attention_dropout=0")
    with pytest.raises(SettingsError, match="2 does not divide the number of processes, 1"):
        pretrain(recipe, quiet=True)
    assert not recipe.folder.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("parallelism.context=3",), r"set data\.sequence_length=33"),
        (("train.compile=blocks",), r"set train\.compile=false"),
        (("model.attention_dropout=0.1",), r"set model\.attention_dropout=0"),
        (("parallelism.context=0",), r"parallelism\.context"),
    ],
)
def test_a_recipe_that_cannot_share_rows_is_refused(load: Load, changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load("model.attention_dropout=0", "parallelism.context=2", *changes)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_share_rows_are_refused(load: Load, tmp_path: Path) -> None:
    from mesalm import MesaConfig

    MesaConfig(attention_dropout=0.1).save_pretrained(tmp_path / "earlier")
    recipe = load("model.attention_dropout=0", "parallelism.context=2", f"init_from={tmp_path / 'earlier'}")
    recipe = recipe.model_copy(update={"model": {}})
    with pytest.raises(SettingsError, match=r"set parallelism\.context=1"):
        earlier_config(recipe)

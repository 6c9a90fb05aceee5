"""Several CPU processes, and launches that would silently not be what was asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mesalm.journal import read_journal
from mesalm.train.launch import LaunchError, check_processes
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2")


def losses(recipe: Recipe, event: str) -> list[float]:
    lines: list[dict[str, Any]] = read_journal(recipe.folder / "journal.jsonl")
    return [line["loss"] for line in lines if line["event"] == event]


def test_two_processes_train_as_one(load: Load, start: Start) -> None:
    changes = ("model.attention_dropout=0", "train.micro_rows=1", "train.steps=20", "validate.rows=7")
    process = start("name=two", *changes, launcher=TORCHRUN)
    one, two = load("name=one", *changes), load("name=two", *changes)
    pretrain(one, quiet=True)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    for event in ("step", "valid", "end"):
        assert losses(two, event) == pytest.approx(losses(one, event), abs=1e-5), event
    start_line, *_ = read_journal(two.folder / "journal.jsonl")
    assert start_line["world"] == 2
    assert (two.folder / "final" / "model.safetensors").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate starts what it is asked for")
@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (ACCELERATE, "asked for several processes but started one"),
        (TORCHRUN, "2 processes were launched but accelerate"),
    ],
)
def test_wrong_launch_is_refused(load: Load, start: Start, launcher: tuple[str, ...], message: str) -> None:
    process = start("train.device=auto", launcher=launcher)
    _, errors = process.communicate(timeout=150)
    assert process.returncode != 0
    assert message in errors
    assert not load().folder.exists()


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, 2),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1),
        ({"MASTER_ADDR": "node1"}, 1),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "node1", "ACCELERATE_MIXED_PRECISION": "no"}, 1),
    ],
)
def test_right_launch_is_let_pass(environment: dict[str, str], world: int) -> None:
    check_processes(environment, world)


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, 1),
    ],
)
def test_wrong_environment_is_refused(environment: dict[str, str], world: int) -> None:
    with pytest.raises(LaunchError, match=r"train\.device=cpu") as caught:
        check_processes(environment, world)
    assert "\n" not in str(caught.value)

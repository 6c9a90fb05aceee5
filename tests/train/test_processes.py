"""Several CPU processes, and launches that would silently not be what was asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from safetensors.torch import load_file

from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.checkpoint import CheckpointError
from mesalm.train.launch import LaunchError, check_options, check_processes, launch_precision
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe
from mesalm.train.run_folder import RunFolder, read_run_recipe

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


@pytest.mark.slow
@pytest.mark.parametrize("data", [(), ("data.stream=true", "data.stream_sample=20")])
def test_two_processes_stopped_and_taken_up_end_as_if_they_had_not_been(
    load: Load, start: Start, data: tuple[str, ...]
) -> None:
    settings = ("schedule.name=constant", "schedule.warmup_steps=0", *data)

    def run(name: str, steps: int) -> Path:
        process = start(f"name={name}", f"train.steps={steps}", *settings, launcher=TORCHRUN)
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        return load(f"name={name}").folder

    whole, parts = run("whole", 8), run("parts", 4)
    run("parts", 8)
    starts = [line["step"] for line in read_journal(parts / "journal.jsonl") if line["event"] == "start"]
    assert starts == [0, 4]
    # the tiny recipe has dropout, so each process must have found its own random state again
    files = ["final/model.safetensors", *(f"checkpoints/step-00000008/{name}.pt" for name in ("optimiser", "random"))]
    assert [(whole / file).read_bytes() for file in files] == [(parts / file).read_bytes() for file in files]
    if data:
        with pytest.raises(CheckpointError, match="the stream was read by 2 processes"):
            pretrain(load("name=parts", "train.steps=9", *settings), quiet=True)


def test_all_processes_learn_that_the_run_folder_is_taken(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @contextmanager
    def watching(*arguments: Any) -> Iterator[None]:
        try:
            yield
        except SettingsError as error:
            told.append(str(error))
            raise

    monkeypatch.setattr("mesalm.train.pretrain.watching", watching)
    recipe = load()
    with RunFolder(recipe.folder).locked(), pytest.raises(SettingsError, match="is training this run") as caught:
        pretrain(recipe, quiet=True)
    assert told == [str(caught.value)]


@pytest.mark.slow
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
    if process.returncode == 0:  # early releases of accelerate start two processes on the CPU, as they are asked to
        start_line, *_ = read_journal(load().folder / "journal.jsonl")
        assert start_line["world"] == 2
        return
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


def launched(*options: str) -> dict[str, str]:
    """Return the environment that accelerate launch itself would give to a process."""
    settings = launch_command_parser().parse_args([*options, "--num_processes", "1", "train.py"])
    for name, value in (("num_cpu_threads_per_process", 1), ("mixed_precision", "no"), ("dynamo_backend", "no")):
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    settings.use_cpu, settings.gpu_ids, settings.num_machines = settings.cpu, "all", 1
    if settings.use_fsdp or settings.use_megatron_lm:
        settings.main_process_port = 29517
        return prepare_multi_gpu_env(settings)
    return prepare_simple_launcher_cmd_env(settings)[1]


@pytest.mark.parametrize(
    ("options", "asked", "trained"),
    [
        ((), "auto", "fp32"),
        ((), "bf16", "bf16"),
        ((), "fp32", "fp32"),
        (("--mixed_precision", "bf16"), "auto", "bf16"),
        (("--mixed_precision", "bf16"), "bf16", "bf16"),
    ],
)
def test_the_launcher_s_precision_is_adopted(options: tuple[str, ...], asked: str, trained: str) -> None:
    assert launch_precision(asked, launched(*options)) == trained
    check_options(launched(*options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mixed_precision", "fp16"), "--mixed_precision fp16 is not supported"),
        (("--mixed_precision", "bf16"), "contradicts fp32"),
        (("--dynamo_backend", "inductor"), r"train\.compile=true"),
        (("--use_fsdp",), "FSDP"),
        (("--use_fsdp", "--fsdp_version", "2"), "FSDP"),
        (("--use_megatron_lm",), "Megatron-LM"),
    ],
)
def test_what_the_launcher_cannot_have_is_refused(options: tuple[str, ...], words: str) -> None:
    environment = launched(*options)
    with pytest.raises(LaunchError, match=words) as caught:
        check_options(environment), launch_precision("fp32", environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_USE_FSDP": "1"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "True"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_DYNAMO_BACKEND": "EAGER"},
    ],
)
def test_variables_that_the_recipe_does_not_know_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchError) as caught:
        check_options(environment)
    assert "\n" not in str(caught.value)
    assert next(iter(environment)).removeprefix("ACCELERATE_").split("_")[-1].lower() in str(caught.value).lower()


def test_a_run_in_the_launcher_s_precision_records_it(
    load: Load, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = load("train.steps=1")
    assert recipe.train.precision == "auto"
    folder = pretrain(recipe)
    assert "train.precision: bf16, as accelerate launch says" in capfd.readouterr().err
    assert read_run_recipe(folder).train.precision == "bf16"
    assert {weight.dtype for weight in load_file(folder / "final" / "model.safetensors").values()} == {torch.float32}
    start_line, *_ = read_journal(folder / "journal.jsonl")
    assert start_line["recipe"]["train"]["precision"] == "bf16"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(SettingsError, match=r"train\.precision is 'bf16' there and 'fp32' now"):
        pretrain(recipe, quiet=True)

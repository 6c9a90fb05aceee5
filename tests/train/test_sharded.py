"""Models sharded over CPU processes by FSDP2: trained as by one process, and taken up by other numbers of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.launch import LaunchError, check_options
from mesalm.train.pretrain import _check_sharded, pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SAME = (
    "model.attention_dropout=0",
    "model.num_hidden_layers=2",
    "model.mixers=[mesa, softmax]",
    "schedule.name=constant",
    "schedule.warmup_steps=0",
    "train.micro_rows=1",
    "validate.rows=7",  # not the same number on each process
)


def torchrun(processes: int) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return errors


def losses(run: Path) -> list[tuple[str, int, float, float]]:
    events = ("step", "valid", "valid_average")
    lines = [line for line in read_journal(run / "journal.jsonl") if line["event"] in events]
    return [(line["event"], line["step"], line["loss"], line.get("gradient_norm", 0.0)) for line in lines]


def assert_alike(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for expected, found in zip(losses(one), losses(other), strict=True):
        assert found[:2] == expected[:2]
        assert found[2:] == pytest.approx(expected[2:], abs=tolerance), found[:2]
    for folder in ("final", "final-average") if (one / "final-average").exists() else ("final",):
        weights, others = (load_file(run / folder / "model.safetensors") for run in (one, other))
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, atol=tolerance, rtol=0)


def test_two_processes_shard_and_one_goes_on(load: Load, start: Start) -> None:
    settings = ("train.average=0.5", *SAME)
    process = start("name=run", "train.steps=4", *settings, launcher=torchrun(2), environment=FSDP)
    whole = pretrain(load("name=whole", "train.steps=8", *settings), quiet=True)
    finish(process)
    run = load("name=run", *settings).folder
    kept = FileSystemReader(run / "checkpoints" / "step-00000004" / "optimiser").read_metadata().state_dict_metadata
    chunks = [about.chunks for name, about in kept.items() if name.endswith("exp_avg") and len(about.size) == 2]
    assert chunks
    assert all(len(parts) == 2 for parts in chunks)  # each process has a half
    for name in ("final", "final-average"):
        assert AutoModelForCausalLM.from_pretrained(run / name).config.architectures == ["MesaForCausalLM"]
    pretrain(load("name=run", "train.steps=8", *settings), quiet=True)
    assert_alike(whole, run)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkpoints_in_the_background_are_those_of_a_run_that_waits(load: Load, start: Start) -> None:
    settings = ("train.steps=7", "checkpoint.every=2", "checkpoint.keep=9", "train.average=0.5", *SAME)
    processes = [
        start(f"name={name}", f"checkpoint.asynchronous={how}", *settings, launcher=torchrun(2), environment=FSDP)
        for name, how in (("waited", "false"), ("meanwhile", "true"))
    ]
    for process in processes:
        finish(process)
    waited, meanwhile = (load(f"name={name}", *settings).folder for name in ("waited", "meanwhile"))
    steps = [[line["step"] for line in read_journal(run / "journal.jsonl") if line["event"] == "checkpoint"]
             for run in (waited, meanwhile)]  # fmt: skip
    assert steps == [[2, 4, 6, 7]] * 2
    for step in steps[0]:
        one, other = (run / "checkpoints" / f"step-{step:08d}" for run in (waited, meanwhile))
        assert Checkpoints(other.parent).read_state(other)["tally"]["step"] == step
        for file in ("model.safetensors", "average/model.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
    shutil.rmtree(meanwhile / "final")
    shutil.rmtree(meanwhile / "final-average")
    for newer in (6, 7):
        shutil.rmtree(meanwhile / "checkpoints" / f"step-{newer:08d}")
    (meanwhile / "checkpoints" / "step-00000006.partial").mkdir()  # what a kill leaves
    finish(start("name=meanwhile", "checkpoint.asynchronous=true", *settings, launcher=torchrun(2), environment=FSDP))
    assert_alike(waited, meanwhile, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("files", "process", "everyone"),
    [
        ("step-00000004.partial/optimiser/__1_0.distcp", 1, False),
        ("step-00000004.partial/optimiser/.metadata*", 0, True),
        ("step-00000004.partial/state.json", 0, True),
        ("step-00000004.partial", 0, True),  # as it is renamed
    ],
)
def test_processes_killed_while_they_write_in_the_background_go_on_from_the_checkpoint_before(
    load: Load, start: Start, files: str, process: int, everyone: bool
) -> None:
    settings = ("train.steps=5", "checkpoint.every=2", "checkpoint.keep=9", "checkpoint.asynchronous=true", *SAME)
    script = str(Path(__file__).with_name("killed_writing.py"))
    wanted = json.dumps({"files": f"*/{files}", "process": process, "everyone": everyone})
    whole = start("name=whole", *settings, launcher=torchrun(2), environment=FSDP)
    killed = start("name=run", *settings, launcher=(*torchrun(2), script), environment={**FSDP, "KILL": wanted})
    finish(whole)
    _, errors = killed.communicate(timeout=500)
    assert "Signal 9 (SIGKILL)" in errors, errors
    folders = [load(f"name={name}", *settings).folder for name in ("whole", "run")]
    one, other = (Checkpoints(folder / "checkpoints") for folder in folders)
    assert [path.name for path in other.complete()] == ["step-00000002"]
    assert other.read_state(other.complete()[0])["step"] == 2
    finish(start("name=run", *settings, launcher=torchrun(2), environment=FSDP))
    assert_alike(*folders, 0.0)
    for folder in one.complete():
        found = other.folder / folder.name
        assert other.read_state(found)["step"] == one.read_state(folder)["step"]
        assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in other.folder.iterdir()) == [path.name for path in one.complete()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 4)])
def test_more_processes_go_on(load: Load, start: Start, first: int, then: int) -> None:
    changes = ("sample.every=3", "sample.tokens=4", "train.average=0.5", *SAME)
    whole = pretrain(load("name=whole", "train.steps=6", *changes), quiet=True)
    if first == 1:
        pretrain(load("name=run", "train.steps=3", *changes), quiet=True)
    else:
        finish(start("name=run", "train.steps=3", *changes, launcher=torchrun(first), environment=FSDP))
    finish(start("name=run", "train.steps=6", *changes, launcher=torchrun(then), environment=FSDP))
    run = load("name=run", *changes).folder
    expected, found = ([line for line in losses(folder) if line[0] == "step"] for folder in (whole, run))
    for there, here in zip(expected, found, strict=True):
        assert here[:2] == there[:2]
        assert here[2:] == pytest.approx(there[2:], abs=1e-5), here[:2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        # both run in bfloat16, in which sums of other order differ in the last of 8 bits, scaled by the rate
        (("optim.name=muon",), 1e-3),
        (("train.precision=bf16", "train.gradient_checkpointing=true"), 1e-3),
        (("train.clip=0.01", "optim.decay_embeddings=true", "model.tie_word_embeddings=false"), 1e-5),
    ],
)
def test_other_settings_shard_too(load: Load, start: Start, changes: tuple[str, ...], tolerance: float) -> None:
    settings = ("train.steps=6", *SAME, *changes)
    process = start("name=two", *settings, launcher=torchrun(2), environment=FSDP)
    one = pretrain(load("name=one", *settings), quiet=True)
    finish(process)
    assert_alike(one, load("name=two", *settings).folder, tolerance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_shard_too(load: Load, start: Start) -> None:
    settings = ("train.steps=6", "train.log_every=2", "sample.every=3", "sample.tokens=4", *SAME)
    process = start("name=two", "train.compile=blocks", *settings, launcher=torchrun(2), environment=FSDP)
    one = pretrain(load("name=one", *settings), quiet=True)
    finish(process)
    assert_alike(one, load("name=two", *settings).folder, 1e-4)


@pytest.mark.slow
def test_what_is_not_finite_is_refused_on_all_shards(tmp_path: Path, start: Start) -> None:
    """A step read at once and one that the fused optimiser refuses by itself; every other step is made."""
    script = Path(__file__).with_name("sharded_regression.py")
    found = []
    for processes, environment in ((1, {}), (2, FSDP)):
        target = tmp_path / f"{processes}.pt"
        launcher = torchrun(processes) if processes > 1 else ()
        command = [sys.executable, *launcher, str(script), str(target)]
        clean = {"OMP_NUM_THREADS": "1", "PATH": "", **environment}
        done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(target))
    one, two = found
    assert one["skipped"] == two["skipped"] == 2
    assert one["sharded"] is False
    assert two["sharded"] is True
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_shards_go_back_from_a_spike(tmp_path: Path) -> None:
    """As one process does; the checkpoint that is written in the background is waited for."""
    script = Path(__file__).with_name("sharded_rollback.py")
    found = {}
    for name, processes, environment in (("one", 1, {}), ("two", 2, FSDP), ("meanwhile", 2, FSDP)):
        launcher = torchrun(processes) if processes > 1 else ()
        command = [sys.executable, *launcher, str(script), str(tmp_path / name), str(name == "meanwhile")]
        threads = {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=os.environ | threads | environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        found[name] = [torch.load(tmp_path / name / f"{rank}.pt") for rank in range(processes)]
        refused = [line for line in read_journal(tmp_path / name / "journal.jsonl") if line["event"] == "refused"]
        assert [(line["step"], line["done"]) for line in refused] == [
            (25, "rolled back to step-00000024"),
            (31, "rolled back to step-00000030"),
        ]
    assert [state["sharded"] for states in found.values() for state in states] == [False, True, True, True, True]
    one, two, meanwhile = (found[name][0] for name in ("one", "two", "meanwhile"))
    assert found["two"][0]["losses"] == found["two"][1]["losses"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert meanwhile["losses"] == two["losses"]
    assert len(one["back"]) == 2
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, atol=1e-5, rtol=0)
        assert torch.equal(meanwhile["weights"][name], two["weights"][name])
    for name, states in found.items():
        assert states[0]["tied"]["kept"].keys() == states[0]["tied"]["loaded"].keys()
        for key, kept in states[0]["tied"]["kept"].items():
            assert torch.equal(states[0]["tied"]["loaded"][key], kept), key
        for number, step in enumerate((24, 30)):
            kept = load_file(tmp_path / name / "checkpoints" / f"step-000000{step}" / "model.safetensors")
            assert all(torch.equal(states[0]["back"][number][key], kept[key]) for key in kept)


def test_writing_in_the_background_is_for_sharded_runs(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"^checkpoint.asynchronous: needs a model sharded by FSDP; leave it out"):
        pretrain(load("checkpoint.asynchronous=true"), quiet=True)


def test_one_process_cannot_shard(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=r"FSDP was requested, but accelerate uses NO for 1 process"):
        pretrain(load(), quiet=True)
    assert not load().folder.exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "set fsdp_offload_params: false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"train\.gradient_checkpointing=true"),
    ],
)
def test_what_sharding_does_not_do_is_refused(environment: dict[str, str], words: str) -> None:
    check_options(FSDP, sharding=True)
    with pytest.raises(LaunchError, match=words) as caught:
        check_options({**FSDP, **environment}, sharding=True)
    assert "\n" not in str(caught.value)


def test_a_setting_that_does_not_shard_names_one_that_does(load: Load) -> None:
    _check_sharded(load("train.compile=blocks"))
    with pytest.raises(
        SettingsError, match=r"train\.compile: is not supported with FSDP; set train\.compile=blocks, or"
    ):
        _check_sharded(load("train.compile=true"))

"""Two machines, as two launches on this one with folders of their own, or with those they share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]
SAME = ("model.attention_dropout=0", "schedule.name=constant", "schedule.warmup_steps=0")
FSDP = {"ACCELERATE_USE_FSDP": "true"}


def launchers() -> list[tuple[str, ...]]:
    """Return Python's arguments that launch one process on each of two machines, which find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port)
    return [("-m", "torch.distributed.run", "--node_rank", str(rank), *options) for rank in range(2)]


@pytest.fixture
def launch(start: Start, tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """Launch a run on both machines; return exit status and standard error of each."""

    def begin(*overrides: str, second: tuple[str, ...] = (), environment: dict[str, str] | None = None):
        processes = []
        for rank, launcher in enumerate(launchers()):
            disk = tmp_path / f"machine{rank}"
            own = (f"output_dir={disk}/runs", f"data.cache_dir={disk}/cache", *(second if rank else ()))
            processes.append(start(*overrides, *own, launcher=launcher, environment=environment))
        ends = [process.communicate(timeout=300)[1] for process in processes]
        return [(process.returncode, end) for process, end in zip(processes, ends, strict=True)]

    return begin


@pytest.mark.slow
def test_machines_without_a_shared_disk_train_and_go_on(
    launch: Callable[..., list], load: Load, tmp_path: Path
) -> None:
    whole = pretrain(load("train.steps=8", *SAME), quiet=True)
    for steps in (4, 8):
        for status, errors in launch(f"train.steps={steps}", *SAME):
            assert status == 0, errors
    first, second = (tmp_path / f"machine{rank}" for rank in range(2))
    assert len(list((first / "cache" / "prepared").glob("*/manifest.json"))) == 1
    assert len(list((second / "cache" / "prepared").glob("*/manifest.json"))) == 1
    sent = second / "runs" / "tiny" / "checkpoints" / "step-00000004"
    own = first / "runs" / "tiny" / "checkpoints" / "step-00000004"
    assert [path.name for path in sent.parent.iterdir()] == [sent.name]
    for path in own.iterdir():
        assert (sent / path.name).read_bytes() == path.read_bytes()
    weights = load_file(first / "runs" / "tiny" / "final" / "model.safetensors")
    for name, weight in load_file(whole / "final" / "model.safetensors").items():
        assert (weights[name] - weight).abs().max() < 1e-5, name


@pytest.mark.slow
def test_machines_without_a_shared_disk_go_back_from_a_spike_together(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("sharded_rollback.py"))
    processes = []
    for rank, launcher in enumerate(launchers()):
        command = [sys.executable, *launcher, script, str(tmp_path / f"machine{rank}"), "False"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    ends = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    first, second = (torch.load(tmp_path / f"machine{rank}" / f"{rank}.pt") for rank in range(2))
    sent = (tmp_path / "machine1" / "checkpoints").iterdir()
    assert sorted(path.name for path in sent) == ["step-00000024", "step-00000030"]
    assert len(first["back"]) == 2
    for one, other in zip([*first["back"], first["weights"]], [*second["back"], second["weights"]], strict=True):
        assert all(torch.equal(other[name], weight) for name, weight in one.items())


@pytest.mark.slow
def test_a_machine_with_other_data_is_named(launch: Callable[..., list], corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text((corpus / "text.jsonl").read_text().replace("cat", "cow"))
    ends = launch("train.timeout=5", second=(f"data.sources.0.files={other}",))
    for status, errors in ends:
        assert status != 0
        assert "prepared different data from" in errors
    assert not (tmp_path / "machine0" / "runs" / "tiny" / "checkpoints").exists()


@pytest.mark.slow
def test_sharding_needs_a_shared_disk(launch: Callable[..., list], tmp_path: Path) -> None:
    for status, errors in launch(environment=FSDP):
        assert status != 0
        assert "with FSDP all machines write checkpoints, so set output_dir to a folder on a disk" in errors
    assert not list(tmp_path.glob("machine*/cache/prepared/*/manifest.json"))

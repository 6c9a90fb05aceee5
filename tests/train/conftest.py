"""A tiny task for the loop, and a tiny corpus and recipe for whole runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mesalm.data.stream import Position, RowStream
from mesalm.interrupts import Interrupted
from mesalm.journal import Journal
from mesalm.runs import step_of
from mesalm.train import training
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.guard import Guard
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Loop, Outcome, Probe
from mesalm.train.pretrain import pretrain
from mesalm.train.randomness import seed_everything
from mesalm.train.recipe import Recipe, load_recipe

SENTENCE = "the cat sat on a mat while dogs ran over red hills and old men told long tales of ships"

RUN_SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import load_recipe
pretrain(load_recipe(sys.argv[1], sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Regression(torch.nn.Module):
    """A network with dropout, so that a wrong random state shows."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 1)
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return SimpleNamespace(loss=(self.body(x).squeeze(-1) - y).square().mean())


def regression_rows(count: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 4, generator=generator)
    return list(zip(x, x.sin().sum(-1), strict=True))


def collate(items: list[Any]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}


@pytest.fixture
def train_regression(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Train the tiny task; ten rows and steps of four rows make the epochs end inside steps."""

    def run(
        folder: str | None = None,
        *,
        steps: int = 12,
        micro_rows: int = 4,
        every: int = 3,
        keep: int = 2,
        resume: bool = False,
        probes: tuple[Probe, ...] = (),
        model: torch.nn.Module | None = None,
        guard: Guard | None = None,
        precision: str = "fp32",
        dropout: float = 0.2,
        fused: bool = False,
        kind: type[Checkpoints] = Checkpoints,
        collate: Callable[[list[Any]], dict[str, torch.Tensor]] = collate,
        **options: Any,
    ) -> SimpleNamespace:
        accelerator = make_accelerator(device="cpu", precision=precision)
        seed_everything(1)
        model = model or Regression(dropout)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        stream = RowStream(regression_rows(), Position(3), 4, micro_rows=micro_rows, collate=collate)
        path = None if folder is None else tmp_path / folder
        checkpoints = None if path is None else kind(path / "checkpoints", every=every, keep=keep)
        resume_from = checkpoints.newest() if checkpoints is not None and resume else None
        with Journal(None if path is None else path / "journal.jsonl") as journal:
            step = 0 if resume_from is None else step_of(resume_from)
            journal.write("start", step=step)
            outcome = Loop(
                model,
                stream,
                optimiser,
                accelerator=accelerator,
                steps=steps,
                learning_rate=lambda step: 1e-2 / (1 + step),
                guard=guard or Guard(10),
                probes=probes,
                journal=journal,
                log_every=options.pop("log_every", 1),
                checkpoints=checkpoints,
                resume_from=resume_from,
                **options,
            ).fit()
        return SimpleNamespace(
            model=model, optimiser=optimiser, outcome=outcome, path=path, checkpoints=checkpoints, stream=stream
        )

    return run


class SlowDisk:
    """A process alone that shards models; a test says when the parts that it writes in the background are written."""

    def __init__(self) -> None:
        self.begun: list[Future[None]] = []

    def shard(self, model: torch.nn.Module) -> torch.nn.Module:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model

    def async_save(self, state: dict[str, Any], **options: Any) -> Future[None]:
        dcp.save(state, **options)
        self.begun.append(Future())
        return self.begun[-1]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(dcp, "async_save", disk.async_save)
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield disk
    destroy_process_group()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short documents in one file, and beside it a cache for the data prepared from them."""
    chance = random.Random(0)
    words = SENTENCE.split()
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "text.jsonl").open("w") as file:
        for number in range(60):
            text = " ".join(chance.choice(words) for _ in range(60))
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return folder


@pytest.fixture
def recipe_file(corpus: Path, tmp_path: Path) -> Path:
    """The file of a tiny recipe whose runs go under tmp_path/runs."""
    recipe = {
        "name": "tiny",
        "output_dir": str(tmp_path / "runs"),
        "data": {
            "sources": [{"name": "files", "files": str(corpus / "text.jsonl")}],
            "vocab_size": 300,
            "sequence_length": 32,
            "valid_fraction": 0.1,
            "test_fraction": 0.1,
            "cache_dir": str(corpus / "cache"),
        },
        "model": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mixers": "softmax",
            "attention_dropout": 0.1,
        },
        "train": {"steps": 12, "batch_rows": 4, "log_every": 1, "device": "cpu"},
        "validate": {"every": 4, "rows": 8},
        "checkpoint": {"every": 4},
        "arms": {"mesa": {"model.mixers": "mesa"}, "fast": {"optim.learning_rate": 0.01}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def load(recipe_file: Path) -> Callable[..., Any]:
    """Load the tiny recipe with changes."""
    return lambda *overrides, arm=None: load_recipe(str(recipe_file), overrides, arm=arm)


@pytest.fixture
def start(tmp_path: Path, recipe_file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a run of the tiny recipe in a process of its own, under a launcher if one is given."""
    script = tmp_path / "run.py"
    script.write_text(RUN_SCRIPT)
    started: list[subprocess.Popen[str]] = []

    def begin(*overrides: str, launcher: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
        process = subprocess.Popen(
            [sys.executable, *launcher, str(script), str(recipe_file), *overrides],
            env={**clean, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


@pytest.fixture
def stopped() -> Callable[..., Recipe]:
    """Train a recipe until this process gets a signal as a step begins; return the recipe."""

    def until(recipe: Recipe, step: int, number: int = signal.SIGTERM, quiet: bool = True, **more: Any) -> Recipe:
        def send(model: torch.nn.Module, at: int) -> list[dict[str, Any]]:
            if at + 1 == step:
                os.kill(os.getpid(), number)
            return []

        def train(*arguments: Any, probes: Sequence[Probe], **options: Any) -> Outcome:
            return training.run(*arguments, probes=[*probes, Probe("signal", 1, send, at_end=False)], **options)

        with pytest.raises(Interrupted) as caught:
            pretrain(recipe, quiet=quiet, train=train, **more)
        assert caught.value.code == 128 + number
        return recipe

    return until

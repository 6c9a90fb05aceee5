"""What is not finite is stopped, with its step and place, before any file holds it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import ModelOutput

from mesalm.cli import main
from mesalm.journal import read_journal
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.guard import Guard, NonFiniteError
from mesalm.train.loop import Probe

Train = Callable[..., SimpleNamespace]

POISON = """
import os, sys, torch
torch.set_num_threads(1)
plain, made = torch.optim.AdamW.step, [0]
def step(self, *rest):
    plain(self, *rest)
    made[0] += 1
    if made[0] == 3 and os.environ["RANK"] == "1":
        self.param_groups[0]["params"][0].data[0] = torch.nan
torch.optim.AdamW.step = step
from mesalm.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the first parameter's values, or its state in the optimiser, after one of AdamW's steps."""

    def arrange(at: int, value: float, kept: str | None = None) -> None:
        plain, made = torch.optim.AdamW.step, itertools.count(1)

        def step(self: Any, *rest: Any) -> None:
            plain(self, *rest)
            first = self.param_groups[0]["params"][0]
            if not first.is_meta and next(made) == at:  # a plan's optimiser has weights without numbers
                (first.data if kept is None else self.state[first][kept])[0] = value

        monkeypatch.setattr(torch.optim.AdamW, "step", step)

    return arrange


def stop_of(folder: Path) -> dict[str, Any]:
    last = read_journal(folder / "journal.jsonl")[-1]
    assert last["event"] == "stop"
    return last


def assert_all_finite(folder: Path) -> list[str]:
    """Check the numbers of all checkpoints under a folder by themselves; return the checkpoints' names."""
    names = []
    for checkpoint in sorted((folder / "checkpoints").glob("step-*")):
        names.append(checkpoint.name)
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint / "model.safetensors").values())
        states = torch.load(checkpoint / "optimiser.pt")["state"].values()
        assert all(bool(torch.as_tensor(value).isfinite().all()) for state in states for value in state.values())
    return names


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [8, 9, 12])
def test_no_checkpoint_holds_a_weight_that_is_not_finite(
    train_regression: Train, after_step: Any, tmp_path: Path, at: int, value: float
) -> None:
    after_step(at, value)  # 9 is a step with a checkpoint, 12 the last
    with pytest.raises(NonFiniteError, match=rf"after step {at}: the weight body\.0\.weight is not finite; lower"):
        train_regression("run")
    assert f"after step {at}" in stop_of(tmp_path / "run")["reason"]
    sound = {8: ["step-00000003", "step-00000006"], 9: ["step-00000003", "step-00000006"]}
    assert assert_all_finite(tmp_path / "run") == sound.get(at, ["step-00000006", "step-00000009"])


def test_no_run_ends_with_a_weight_that_is_not_finite(train_regression: Train, after_step: Any) -> None:
    after_step(12, float("nan"))
    with pytest.raises(NonFiniteError, match=r"after step 12: the weight body\.0\.weight"):
        train_regression(None)  # no checkpoints to look at


def test_an_optimiser_that_is_not_finite_is_not_kept(train_regression: Train, after_step: Any, tmp_path: Path) -> None:
    after_step(7, float("inf"), "exp_avg_sq")  # its weights merely stand still from here on
    with pytest.raises(NonFiniteError, match=r"after step 9: the optimiser's exp_avg_sq of body\.0\.weight"):
        train_regression("run")
    assert assert_all_finite(tmp_path / "run") == ["step-00000003", "step-00000006"]


def test_validation_does_not_read_weights_that_are_not_finite(train_regression: Train, after_step: Any) -> None:
    seen: list[int] = []

    def look(model: torch.nn.Module, step: int) -> list[dict[str, Any]]:
        seen.append(step)
        return []

    after_step(5, float("nan"))
    with pytest.raises(NonFiniteError, match="after step 5"):
        train_regression("run", probes=(Probe("look", 1, look),))
    assert seen == [1, 2, 3, 4]


class Sick(torch.nn.Module):
    """Have a loss that is NaN in some calls, though its gradient is finite, or a layer that overflows in all."""

    def __init__(self, bad: set[int], overflow: bool = False) -> None:
        super().__init__()
        self.map, self.grow, self.top = torch.nn.Linear(4, 4), torch.nn.Hardtanh(), torch.nn.Linear(4, 1)
        if overflow:
            self.grow = Grow()
        self.bad, self.calls = bad, 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        self.calls += 1
        loss = (self.top(self.grow(self.map(x))).squeeze(-1) - y).square().mean()
        return ModelOutput(loss=loss + (torch.nan if self.calls in self.bad else 0.0))


class Grow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.abs() + 100.0).exp()


def test_a_loss_that_is_not_finite_is_a_refused_step_though_its_gradient_is(train_regression: Train) -> None:
    run = train_regression("run", model=Sick({3, 4}), guard=Guard(3))
    lines = [event for event in read_journal(run.path / "journal.jsonl") if event["event"] == "step"]
    assert [line["skipped"] for line in lines[:5]] == [0, 0, 1, 2, 2]
    assert lines[2]["loss"] is None
    assert lines[2]["gradient_norm"] > 0
    with pytest.raises(NonFiniteError, match="step 6: loss or gradient were not finite in 3 steps in a row; check"):
        train_regression("other", model=Sick({4, 5, 6}), guard=Guard(3))


def test_the_mean_of_a_window_is_of_its_finite_losses(train_regression: Train) -> None:
    told = []
    for log_every in (1, 2):
        torch.manual_seed(0)
        run = train_regression(str(log_every), model=Sick({3, 4, 5}), guard=Guard(9), log_every=log_every)
        told.append([event["loss"] for event in read_journal(run.path / "journal.jsonl") if event["event"] == "step"])
    every, pairs = told
    assert pairs[1] is None
    assert pairs[2] == every[5]  # of step 6 alone
    assert pairs[3] == pytest.approx((every[6] + every[7]) / 2)


class Background(Checkpoints):
    def __init__(self, folder: Path, **rest: Any) -> None:
        super().__init__(folder, asynchronous=True, **rest)


def test_a_checkpoint_in_the_background_is_finished_before_the_run_stops(
    train_regression: Train, slow_disk: Any, tmp_path: Path
) -> None:
    class Late(Sick):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            loss = super().forward(x, y)
            if self.calls == 5:  # the last: the shards are on the disk well after it has failed
                threading.Timer(0.3, slow_disk.begun[0].set_result, [None]).start()
            return loss

    with pytest.raises(NonFiniteError, match="step 5: loss or gradient were not finite in 2 steps in a row"):
        train_regression("run", model=slow_disk.shard(Late({4, 5})), guard=Guard(2), kind=Background)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000003"]
    assert checkpoints.read_state(checkpoints.folder / "step-00000003")["step"] == 3
    told = [line for line in read_journal(tmp_path / "run" / "journal.jsonl") if line["event"] == "checkpoint"]
    assert [line["step"] for line in told] == [3]


def test_the_first_module_that_is_not_finite_is_named(train_regression: Train) -> None:
    with pytest.raises(NonFiniteError, match=r"step 2: .* now first in the output of grow; check the data"):
        train_regression("run", model=Sick(set(), overflow=True), guard=Guard(2))


def test_a_poisoned_checkpoint_is_named_and_not_trained_on(train_regression: Train, monkeypatch: Any) -> None:
    whole = train_regression("run", steps=6)
    with torch.no_grad():
        whole.model.body[3].bias.fill_(torch.nan)
    state = whole.checkpoints.read_state(whole.checkpoints.newest())
    states = torch.load(whole.checkpoints.newest() / "random.pt")
    whole.checkpoints.save(6, whole.model, whole.optimiser, states, {**state, "files": None})
    with pytest.raises(
        NonFiniteError, match=r"the weight body\.3\.bias is not finite; delete .*step-00000006 to resume"
    ):
        train_regression("run", resume=True)


@pytest.mark.parametrize("mixers", ["mesa", "delta", "linear", "softmax"])
def test_a_run_that_is_lost_is_one_line_and_exit_code_2(
    recipe_file: Path, tmp_path: Path, after_step: Any, capsys: pytest.CaptureFixture[str], mixers: str
) -> None:
    # the mixers' operators look for NaN themselves, but must leave it to the guard, which knows the step
    after_step(5, float("nan"))
    command = ["train", str(recipe_file), "arms={}", f"model.mixers={mixers}", "validate.every=0"]
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mesalm train: ")]
    assert len(lines) == 1
    assert "tiny: after step 5: the weight model." in lines[0]
    folder = tmp_path / "runs" / "tiny"
    assert stop_of(folder)["step"] == 5
    assert assert_all_finite(folder) == ["step-00000004"]
    assert not (folder / "final").exists()


@pytest.mark.slow
def test_all_processes_hear_of_what_one_has_found(start: Any, tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "run.py").write_text(POISON)
    process = start("arms={}", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert errors.count("mesalm train: tiny: after step 3: the weight model.") == 2
    assert "after step 3" in stop_of(tmp_path / "runs" / "tiny")["reason"]

"""What becomes of a step whose loss is far above the last ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mesalm.journal import read_journal
from mesalm.train.average import WeightAverage
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.guard import Guard, NonFiniteError, Verdict

Train = Callable[..., SimpleNamespace]


class Spiky(torch.nn.Module):
    """A network whose loss and gradient are multiplied by a factor in some calls."""

    def __init__(self, bad: set[int], factor: float = 1e6) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.bad, self.factor, self.calls = bad, factor, 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        self.calls += 1
        loss = (self.body(x).squeeze(-1) - y).square().mean()
        return SimpleNamespace(loss=loss * self.factor if self.calls in self.bad else loss)


def weights(run: SimpleNamespace) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def refused(run: SimpleNamespace) -> list[tuple[int, str]]:
    lines = read_journal(run.path / "journal.jsonl")
    return [(line["step"], line["done"]) for line in lines if line["event"] == "refused"]


@pytest.mark.parametrize("reads", [{}, {"log_every": 10, "read_every": 10, "fused": True}])
def test_a_spike_is_skipped_as_a_loss_that_is_not_finite_is(train_regression: Train, reads: dict[str, Any]) -> None:
    def train(folder: str, factor: float, spikes: Verdict = "skip") -> SimpleNamespace:
        model = Spiky({25}, factor)
        return train_regression(folder, steps=30, every=0, model=model, guard=Guard(10, spikes), **reads)

    spike = train("spike", 1e6)
    assert refused(spike) == [(25, "skipped")]
    assert torch.equal(weights(spike), weights(train("nan", float("nan"))))
    accepted = train("accepted", 1e6, "accept")
    assert refused(accepted) == []
    assert not torch.allclose(weights(spike), weights(accepted), atol=1e-4)


def test_few_losses_say_nothing_of_a_spike(train_regression: Train) -> None:
    assert refused(train_regression("run", steps=25, every=0, model=Spiky({19}), guard=Guard(10, "skip"))) == []


def test_a_rollback_takes_the_last_checkpoint_and_goes_on(train_regression: Train) -> None:
    model = Spiky({25})
    average = WeightAverage(model, 0.5)
    kind = partial(Checkpoints, beside={"average": average.model})
    guard = Guard(10, "rollback")
    run = train_regression("run", steps=25, every=10, keep=9, model=model, guard=guard, average=average, kind=kind)
    assert refused(run) == [(25, "rolled back to step-00000020")]
    for file in ("model.safetensors", "average/model.safetensors"):
        found, kept = (load_file(run.path / "checkpoints" / f"step-000000{step}" / file) for step in (25, 20))
        assert all(torch.equal(found[name], kept[name]) for name in kept)
    states = [torch.load(run.path / f"checkpoints/step-000000{step}/optimiser.pt") for step in (25, 20)]
    for parameter, state in states[0]["state"].items():
        assert all(torch.equal(state[name], states[1]["state"][parameter][name]) for name in state)
    assert run.stream.position.row == 25 * 4 % 10  # the data go on


def test_a_rollback_that_is_read_late_ends_at_the_checkpoint(train_regression: Train) -> None:
    options: dict[str, Any] = {"log_every": 20, "read_every": 24, "fused": True, "every": 20}
    run = train_regression("run", steps=24, model=Spiky({23}), guard=Guard(10, "rollback"), **options)
    assert refused(run) == [(23, "rolled back to step-00000020")]
    # the gradient of step 24 is that of the weights before they went back
    found, kept = (load_file(run.path / f"checkpoints/step-000000{step}/model.safetensors") for step in (24, 20))
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_a_resumed_run_knows_the_losses_before(train_regression: Train) -> None:
    def train(folder: str, steps: int, bad: set[int], resume: bool = False) -> SimpleNamespace:
        guard = Guard(10, "skip")
        return train_regression(folder, steps=steps, every=0, model=Spiky(bad), guard=guard, resume=resume)

    whole = train("whole", 30, {25})
    train("run", 22, set())
    run = train("run", 30, {3}, resume=True)
    assert refused(run) == refused(whole) == [(25, "skipped")]
    assert torch.equal(weights(run), weights(whole))


def test_a_spike_can_stop_the_run(train_regression: Train, tmp_path: Any) -> None:
    with pytest.raises(NonFiniteError, match=r"step 25: loss .* is a spike, above .*; set train\.spikes=skip"):
        train_regression("run", steps=30, every=10, keep=9, model=Spiky({25}), guard=Guard(10, "stop"))
    assert read_journal(tmp_path / "run" / "journal.jsonl")[-1]["event"] == "stop"
    assert not (tmp_path / "run/checkpoints/step-00000025").exists()


def test_spikes_without_end_stop_the_run(train_regression: Train) -> None:
    with pytest.raises(NonFiniteError, match="step 27: loss or gradient were refused in 3 steps in a row"):
        train_regression("run", steps=30, every=0, model=Spiky(set(range(25, 40))), guard=Guard(3, "skip"))

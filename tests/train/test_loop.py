"""The loop on a task that is no language model: accumulation, guard, probes, precision, resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mesalm.journal import read_journal
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.guard import Guard, NonFiniteError
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Loop, Probe
from mesalm.train.speeds import known_peak

Train = Callable[..., SimpleNamespace]


def weights(run: SimpleNamespace) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def moments(run: SimpleNamespace) -> torch.Tensor:
    states = run.optimiser.state_dict()["state"]
    return torch.cat([torch.as_tensor(value).flatten() for state in states.values() for value in state.values()])


def losses(run: SimpleNamespace) -> list[tuple[int, float]]:
    events = read_journal(run.path / "journal.jsonl")
    return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]


class CrashError(Exception):
    pass


def crash_at(step: int) -> Probe:
    def run(model: torch.nn.Module, at: int) -> list[dict[str, Any]]:
        if at == step:
            raise CrashError
        return []

    return Probe("crash", 1, run)


@pytest.mark.parametrize(("micro_rows", "log_every"), [(4, 1), (2, 1), (1, 4)])
def test_resume_is_exact_to_the_last_bit(train_regression: Train, micro_rows: int, log_every: int) -> None:
    options = {"micro_rows": micro_rows, "log_every": log_every}
    whole = train_regression("whole", **options)
    with pytest.raises(CrashError):
        train_regression("broken", probes=(crash_at(8),), **options)
    resumed = train_regression("broken", resume=True, **options)
    assert resumed.outcome.step == 12
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(moments(resumed), moments(whole))
    assert losses(resumed) == losses(whole)
    assert resumed.stream.position == whole.stream.position
    assert whole.stream.position.epoch == 4  # 48 rows of 10: steps crossed the ends of epochs


class Forgetful(Checkpoints):
    """Checkpoints without the random state of any process."""

    def save(self, step: int, model: Any, optimiser: Any, random_states: Any, state: Any) -> Path:
        return super().save(step, model, optimiser, [], state)


def test_resume_without_the_random_state_would_differ(train_regression: Train) -> None:
    whole = train_regression("whole")
    with pytest.raises(CrashError):
        train_regression("broken", probes=(crash_at(8),), kind=Forgetful)
    assert not torch.equal(weights(train_regression("broken", resume=True)), weights(whole))


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_accumulation_gives_the_same_steps(train_regression: Train, micro_rows: int) -> None:
    at_once = train_regression("at_once", micro_rows=4, dropout=0.0)
    in_parts = train_regression("in_parts", micro_rows=micro_rows, dropout=0.0)
    torch.testing.assert_close(weights(in_parts), weights(at_once), rtol=1e-5, atol=1e-6)
    # AdamW does not mind a gradient of the wrong size, so the size is looked at too.
    for field in ("loss", "gradient_norm"):
        values = [
            [line[field] for line in read_journal(run.path / "journal.jsonl") if line["event"] == "step"]
            for run in (at_once, in_parts)
        ]
        assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_counted_items_weigh_the_micro_batches(train_regression: Train) -> None:
    class Masked(torch.nn.Module):
        """Score positive targets only, as a language model scores labels other than -100."""

        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            errors = (self.map(x).squeeze(-1) - y).square() * (y > 0)
            return SimpleNamespace(loss=errors.sum() / (y > 0).sum().clamp(min=1))

    def train(micro_rows: int) -> SimpleNamespace:
        torch.manual_seed(0)
        return train_regression(
            model=Masked(), micro_rows=micro_rows, count_items=lambda batch: int((batch["y"] > 0).sum())
        )

    at_once, in_parts = train(4), train(1)
    torch.testing.assert_close(weights(in_parts), weights(at_once), rtol=1e-5, atol=1e-6)
    assert in_parts.outcome.loss == pytest.approx(at_once.outcome.loss, rel=1e-4)


def test_probes_do_not_change_the_run(train_regression: Train) -> None:
    modes = []

    def run(model: torch.nn.Module, step: int) -> list[dict[str, Any]]:
        modes.append((model.training, torch.is_grad_enabled()))
        torch.rand(7)
        return [{"drawn": step}]

    plain = train_regression("plain")
    probed = train_regression("probed", probes=(Probe("look", 5, run), Probe("never", 0, run, at_end=False)))
    assert torch.equal(weights(probed), weights(plain))
    assert modes == [(False, False)] * 3
    lines = [event for event in read_journal(probed.path / "journal.jsonl") if event["event"] == "look"]
    assert [(line["step"], line["drawn"]) for line in lines] == [(5, 5), (10, 10), (12, 12)]


class Poisoned(torch.nn.Module):
    """Have an infinite gradient in some calls."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 1)
        self.bad, self.calls, self.before = bad, 0, []

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        self.calls += 1
        self.before.append(self.map.weight.detach().clone())
        factor = torch.inf if self.calls in self.bad else 1.0
        return SimpleNamespace(loss=(self.map(x).squeeze(-1) - y).square().mean() * factor)


def test_a_run_made_shorter_is_validated_after_its_last_step(train_regression: Train) -> None:
    asked: list[int] = []

    def look(model: torch.nn.Module, step: int) -> list[dict[str, float]]:
        asked.append(step)
        assert not model.training
        return [{"loss": 1.0}]

    options: dict[str, Any] = {"keep": 9, "probes": (Probe("valid", 0, look),)}
    run = train_regression("run", steps=9, **options)
    shutil.rmtree(run.path / "checkpoints" / "step-00000009")
    for _ in range(2):  # once, and not again where only the end is to be told once more
        run = train_regression("run", steps=6, resume=True, **options)
        assert asked == [9, 6]
        assert [line["step"] for line in read_journal(run.path / "journal.jsonl") if line["event"] == "valid"] == [6]


def test_guard_skips_a_step_that_is_not_finite(train_regression: Train) -> None:
    model = Poisoned({3, 4, 6})
    run = train_regression("guarded", model=model, guard=Guard(3))
    assert run.outcome.skipped == 3
    assert torch.equal(model.before[2], model.before[3])
    assert torch.equal(model.before[2], model.before[4])
    assert not torch.equal(model.before[4], model.before[5])
    assert weights(run).isfinite().all()
    lines = [event for event in read_journal(run.path / "journal.jsonl") if event["event"] == "step"]
    assert [line["skipped"] for line in lines[:7]] == [0, 0, 1, 2, 2, 3, 3]
    assert lines[2]["loss"] is None


def test_guard_stops_after_too_many_in_a_row(train_regression: Train, tmp_path: Any) -> None:
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        train_regression("guarded", model=Poisoned({2, 4, 5, 6}), guard=Guard(3))
    events = read_journal(tmp_path / "guarded" / "journal.jsonl")
    assert events[-1]["event"] == "stop"
    assert "not finite" in events[-1]["reason"]


def test_guard_counters_survive_a_checkpoint() -> None:
    guard = Guard(5)
    assert not guard.accepts(1.0, float("nan"))
    other = Guard(5)
    other.load_state_dict(guard.state_dict())
    assert (other.skipped, other.in_row) == (1, 1)
    assert other.accepts(1.0, 1.0)
    assert (other.skipped, other.in_row) == (1, 0)


def test_gradient_is_clipped_to_the_global_norm() -> None:
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            seen.append(torch.cat(gradients).norm().item())
            super().step(closure)

    class Endless:
        position, world, micro_batches = None, 1, 1

        def __iter__(self) -> Any:
            while True:
                yield {"x": torch.ones(4, 4) * 9, "y": torch.zeros(4)}

    torch.manual_seed(0)
    model = Poisoned(set())
    Loop(
        model,
        Endless(),
        Watched(model.parameters(), lr=1e-4),
        accelerator=make_accelerator(device="cpu", precision="fp32"),
        steps=3,
        learning_rate=lambda step: 1e-4,
        clip=0.5,
    ).fit()
    assert seen == pytest.approx([0.5] * 3, rel=1e-4)


def test_bf16_runs_with_weights_in_fp32(train_regression: Train) -> None:
    kinds = set()

    class Half(Poisoned):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            kinds.add(self.map(x).dtype)
            return super().forward(x, y)

    run = train_regression(model=Half(set()), precision="bf16")
    assert kinds == {torch.bfloat16}
    assert weights(run).dtype == torch.float32
    assert run.model.map(torch.ones(1, 4)).dtype == torch.float32
    run.model(x=torch.ones(1, 4), y=torch.ones(1))
    assert kinds == {torch.bfloat16, torch.float32}  # called by itself afterwards, the model is as before
    assert weights(run).isfinite().all()


def test_rate_is_set_for_every_step(train_regression: Train) -> None:
    run = train_regression("rates")
    events = [event for event in read_journal(run.path / "journal.jsonl") if event["event"] == "step"]
    assert [event["learning_rate"] for event in events] == pytest.approx([1e-2 / (1 + s) for s in range(12)])


def test_enough_ends_the_run_after_its_step_and_writes_the_last_checkpoint(train_regression: Train) -> None:
    asked: list[int] = []

    def enough() -> bool:
        asked.append(len(asked) + 1)
        return len(asked) == 5

    run = train_regression("early", enough=enough)
    assert run.outcome.step == 5
    assert run.outcome.interrupted_by is None
    assert asked == [1, 2, 3, 4, 5]
    assert run.checkpoints.newest().name == "step-00000005"
    again = train_regression("early", steps=12, resume=True, enough=lambda: False)
    assert again.outcome.step == 5  # and is not gone on with


def test_the_share_of_the_peak_is_operations_by_time_and_device(train_regression: Train) -> None:
    class Counted(torch.nn.Linear):
        """A map that says what a token costs."""

        def flops_per_token(self, length: int, solver_steps: float) -> float:
            return 1000.0 * length + solver_steps

        def forward(self, input_ids: torch.Tensor, y: torch.Tensor) -> Any:
            return SimpleNamespace(loss=(super().forward(input_ids).squeeze(-1) - y).square().mean())

    def collate(items: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}

    def lines(folder: str, **options: Any) -> list[dict[str, Any]]:
        run = train_regression(folder, model=Counted(4, 1), collate=collate, **options)
        return [event for event in read_journal(run.path / "journal.jsonl") if event["event"] == "step"]

    known = lines("known", peak=5e6)
    assert [line["mfu"] for line in known] == pytest.approx([4000 * line["tokens_per_second"] / 5e6 for line in known])
    assert {line["mfu"] for line in lines("unknown")} == {None}
    assert (known_peak("NVIDIA H100 80GB HBM3"), known_peak("NVIDIA H100 PCIe")) == (989e12, None)

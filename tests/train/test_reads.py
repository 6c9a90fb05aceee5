"""How often a training step waits for the device: losses are read together, refused steps are refused unread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mesalm.journal import read_journal
from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.guard import Guard, NonFiniteError
from mesalm.train.launch import make_accelerator
from mesalm.train.step import backward, clip_gradient, update_where_finite

Train = Callable[..., SimpleNamespace]
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""What torch does on a card only by waiting for it."""


class Reads(TorchDispatchMode):
    """Count what would wait for a card."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


class Line(torch.nn.Module):
    """A linear map that has infinite losses in some calls, and notes how many reads there were before each call."""

    def __init__(self, bad: tuple[int, ...] = (), reads: Reads | None = None) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 1)
        self.bad, self.reads, self.seen = bad, reads, []

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        self.seen.append(0 if self.reads is None else self.reads.count)
        loss = (self.map(x).squeeze(-1) - y).square().mean()
        return SimpleNamespace(loss=loss * (torch.inf if len(self.seen) in self.bad else 1.0))


def journal(run: SimpleNamespace) -> list[dict[str, Any]]:
    timed = ("time", "seconds", "seconds_left", "tokens_per_second")
    events = read_journal(run.path / "journal.jsonl")
    return [{key: event[key] for key in event if key not in timed} for event in events]


def train(train_regression: Train, folder: str, bad: tuple[int, ...] = (), **options: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    model = Line(bad, options.pop("reads", None))
    return train_regression(folder, model=model, fused=True, every=options.pop("every", 8), **options)


@contextmanager
def counted() -> Iterator[Reads]:
    with Reads() as reads:
        yield reads


def test_steps_wait_for_the_device_only_where_they_are_logged(train_regression: Train) -> None:
    with counted() as reads:
        run = train(train_regression, "run", reads=reads, steps=12, log_every=4, read_every=4)
    between = [after - before for before, after in zip(run.model.seen[1:], run.model.seen[2:], strict=False)]
    # seen[n] is before step n + 1, so between[n] holds what steps 2, 3, ... read
    quiet = [count for step, count in enumerate(between, 2) if step % 4]
    assert quiet == [0] * 8
    assert all(count > 0 for step, count in enumerate(between, 2) if step % 4 == 0)
    assert [event["step"] for event in journal(run) if event["event"] == "step"] == [4, 8, 12]


@pytest.mark.parametrize("bad", [(), (3, 6, 7, 12), (4, 8)], ids=str)
@pytest.mark.parametrize("log_every", [4, 5])
def test_reading_seldom_changes_nothing(train_regression: Train, bad: tuple[int, ...], log_every: int) -> None:
    each = train(train_regression, "each", bad, log_every=log_every, read_every=1)
    seldom = train(train_regression, "seldom", bad, log_every=log_every, read_every=100)
    assert seldom.outcome.skipped == each.outcome.skipped == len(bad)
    assert journal(seldom) == journal(each)
    assert torch.equal(seldom.model.map.weight, each.model.map.weight)
    for mine, wanted in zip(seldom.optimiser.state.values(), each.optimiser.state.values(), strict=True):
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_too_many_refused_steps_stop_the_run_when_they_are_read(train_regression: Train, tmp_path: Any) -> None:
    with pytest.raises(NonFiniteError, match="step 4: loss or gradient were not finite in 3 steps in a row"):
        train(train_regression, "run", (2, 3, 4, 5, 6), log_every=6, read_every=6, guard=Guard(3))


def test_an_end_between_reads_has_every_loss(train_regression: Train) -> None:
    def tally(folder: str, read_every: int) -> dict[str, Any]:
        asked: list[int] = []

        def enough() -> bool:
            asked.append(len(asked))
            return len(asked) == 6

        run = train(train_regression, folder, log_every=4, read_every=read_every, every=0, enough=enough)
        assert run.outcome.step == 6
        return run.checkpoints.read_numbers(run.checkpoints.newest())["tally"]

    each, seldom = tally("each", 1), tally("seldom", 4)
    assert seldom["window_steps"] == 2
    assert all(seldom[name] == each[name] for name in each if name != "seconds")


def test_an_optimiser_that_cannot_refuse_a_step_has_each_step_read(train_regression: Train) -> None:
    torch.manual_seed(0)
    run = train_regression("run", model=Line((3, 6)), log_every=6, read_every=6)
    assert run.outcome.skipped == 2
    assert run.model.map.weight.isfinite().all()


@pytest.mark.parametrize(
    "mixers", ["mesa", "delta", "kalman", "linear", "softmax", "window", ["mesa", "softmax"]], ids=str
)
def test_a_model_reads_nothing_of_packed_rows(mixers: str | list[str]) -> None:
    """Fake tensors have no values, so whatever looks at one raises."""
    with FakeTensorMode(), unchecked_values():
        model = tiny_model(mixers=mixers, conv_size=4).train()
        ids, positions = (torch.zeros(2, 96, dtype=torch.long) for _ in range(2))
        with pytest.raises(DataDependentOutputException):
            ids.sum().item()
        model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.card
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
@pytest.mark.parametrize("mixers", ["mesa", "linear", "softmax"])
def test_a_step_on_a_card_does_not_wait(mixers: str) -> None:
    model = tiny_model(mixers=mixers, conv_size=4).to("cuda").train()
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    accelerator = make_accelerator(device="auto", precision="bf16")
    wrapped, prepared = accelerator.prepare(model, optimiser)
    batch = {"input_ids": torch.zeros(2, 96, dtype=torch.long, device="cuda")}
    batch |= {"labels": batch["input_ids"], "position_ids": batch["input_ids"]}

    def step() -> None:
        loss = backward(accelerator, wrapped, [batch], None)
        update_where_finite(prepared, optimiser, loss, clip_gradient(accelerator, model, 1.0))
        prepared.zero_grad()

    step()  # what is compiled and allocated at first may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from mesalm.data.stream import Position, RowStream, epoch_batches, epoch_order


class Numbers:
    """Stand for any dataset: item n is the number n."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> int:
        return index


def collate(items: list[int]) -> dict[str, torch.Tensor]:
    return {"rows": torch.tensor(items)}


def stream(total: int, position: Position, global_rows: int, micro_rows: int, **options: Any) -> RowStream:
    return RowStream(Numbers(total), position, global_rows, micro_rows=micro_rows, collate=collate, **options)


def joined(parts: Iterable[list[int]]) -> list[int]:
    return [item for part in parts for item in part]


def steps(made: RowStream, count: int) -> list[list[int]]:
    """Return the rows of ``count`` steps of one process."""
    batches = [batch["rows"].tolist() for batch in islice(made, count * made.micro_batches)]
    size = made.micro_batches
    return [joined(batches[at : at + size]) for at in range(0, len(batches), size)]


@pytest.mark.parametrize("total", [50, 8, 5, 1])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_data_do_not_depend_on_processes_or_resumes(total: int, world: int) -> None:
    start, count = Position(seed=3, epoch=1, row=total // 2), 13
    order = np.concatenate([epoch_order(3, epoch, total) for epoch in range(1, 1 + 13 * 8 // total + 2)])
    expected = order[start.row : start.row + count * 8].reshape(count, 8).tolist()
    ranks = [stream(total, start, 8, 2, rank=rank, world=world) for rank in range(world)]
    parts = [steps(rank, count) for rank in ranks]
    assert [joined(part[step] for part in parts) for step in range(count)] == expected
    assert {rank.position for rank in ranks} == {start.advance(count * 8, total)}
    # A run stopped after five steps and taken up by another number of processes goes on exactly.
    resumed = Position.from_dict(start.advance(5 * 8, total).to_dict())
    other = 4 // world
    late = [steps(stream(total, resumed, 8, 1, rank=rank, world=other), count - 5) for rank in range(other)]
    assert [joined(part[step] for part in late) for step in range(count - 5)] == expected[5:]


def test_an_epoch_holds_every_row_once_and_epochs_differ() -> None:
    made = steps(stream(24, Position(0), 8, 8), 6)
    first, second = joined(made[:3]), joined(made[3:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second != list(range(24))
    assert steps(stream(24, Position(1), 8, 8), 3) != made[:3]


def test_the_order_never_changes() -> None:
    # Frozen values: another order would break the resumption of old runs.
    assert epoch_order(0, 0, 8).tolist() == [2, 6, 0, 4, 1, 3, 5, 7]
    assert epoch_order(2**40 + 1, 3, 8).tolist() == [3, 2, 5, 7, 4, 1, 0, 6]


def test_position_counts_whole_steps_only() -> None:
    made = stream(20, Position(0), 8, 4)
    running = iter(made)
    next(running)
    assert made.position == Position(0)
    next(running)
    assert made.position == Position(0, 0, 8)
    next(running)
    # Half a step was handed out: a new iterator begins that step again.
    assert steps(made, 1) == steps(stream(20, Position(0, 0, 8), 8, 4), 1)


def test_position_goes_round_the_end_of_an_epoch() -> None:
    position = Position(7, 2, 9).advance(25, 10)
    assert position == Position(7, 5, 4)
    assert Position.from_dict(position.to_dict()) == position
    for wrong in ({"seed": 1}, {"seed": 1, "epoch": 0, "row": "3"}):
        with pytest.raises(ValueError, match="data position"):
            Position.from_dict(wrong)


def test_workers_give_the_same_batches_and_leave_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = stream(30, Position(5), 8, 4, workers=2)
    ahead = steps(made, 6)
    assert torch.equal(torch.get_rng_state(), before)
    assert ahead == steps(stream(30, Position(5), 8, 4), 6)
    assert made.position == Position(5).advance(48, 30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"global_rows": 6, "micro_rows": 4}, "must be a multiple of"),
        ({"global_rows": 6, "micro_rows": 2, "world": 2}, "must be a multiple of"),
        ({"global_rows": 4, "micro_rows": 2, "world": 2, "rank": 2}, "rank must be"),
        ({"global_rows": 4, "micro_rows": 2, "position": Position(0, 0, 10)}, "outside the data"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stream(10, options.pop("position", Position(0)), **options)
    with pytest.raises(ValueError, match="no rows"):
        stream(0, Position(0), 4, 4)


def test_token_batches() -> None:
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[0, 1, 2, 0, 1], [2, 3, 4, 5, 6], [0, 0, 1, 0, 0]],
            "segments": [[3, 2], [5], [1, 2, 1, 1]],
        }
    ).with_format("numpy")
    (batch,) = epoch_batches(rows, 8)
    assert batch["input_ids"].dtype == batch["position_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[0, 1, 2, 0, 1], [2, 3, 4, 5, 6], [0, 0, 1, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 0, 1, 0, 0]]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["labels"].data_ptr() != batch["input_ids"].data_ptr()
    plain = next(iter(RowStream(rows.with_format(None), Position(0), 3, micro_rows=3)))
    numpy = next(iter(RowStream(rows, Position(0), 3, micro_rows=3)))
    assert all(torch.equal(plain[key], numpy[key]) for key in plain)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_one_ordered_pass(world: int) -> None:
    parts = [list(epoch_batches(Numbers(11), 2, rank, world, collate=collate)) for rank in range(world)]
    seen = [number for part in parts for batch in part for number in batch["rows"].tolist()]
    assert seen == list(range(11))
    counts = [len(part) for part in parts]
    assert max(counts) - min(counts) <= 1
    assert all(len(batch["rows"]) <= 2 for part in parts for batch in part)

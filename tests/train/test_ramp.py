"""A batch that grows: how many rows each step has, tokens and steps, and exact resume."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from mesalm.data.stream import Position, RowRamp, RowStream
from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]


@pytest.mark.parametrize("over", [0, 1, 12, 25, 100])
def test_steps_and_rows_are_those_of_counting(over: int) -> None:
    ramp = RowRamp(8, over)
    sizes, done = [], 0
    for _ in range(40):
        sizes.append(8 if done >= over else [2, 4, 6][3 * done // over])
        done += sizes[-1]
    assert [ramp.total(steps) for steps in range(41)] == [sum(sizes[:steps]) for steps in range(41)]
    for rows in range(1, 150):
        fewest = next(steps for steps in range(41) if sum(sizes[:steps]) >= rows)
        assert ramp.steps(rows) == fewest


def numbers(items: list[int]) -> dict[str, torch.Tensor]:
    return {"rows": torch.tensor(items)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_ramp_deals_the_same_rows_in_growing_steps(workers: int) -> None:
    def dealt(rank: int = 0, world: int = 1, **options: Any) -> tuple[list[int], torch.Tensor]:
        place = {"rank": rank, "world": world, "micro_rows": 1}
        stream = RowStream(list(range(10)), Position(3), 8, **place, collate=numbers, **options)
        batches, sizes, rows = iter(stream), [], []
        for _ in range(8):
            count = stream.micro_batches
            sizes.append(count)
            rows += [batch["rows"] for batch in islice(batches, count)]
        return sizes, torch.cat(rows)

    sizes, rows = dealt(ramp=12, workers=workers)
    assert sizes == [2, 2, 4, 6, 8, 8, 8, 8]
    plain = dealt()[1]
    assert torch.equal(rows, plain[: len(rows)])
    halves = [dealt(rank, 2, ramp=12) for rank in (0, 1)]
    assert halves[0][0] == [1, 1, 2, 3, 4, 4, 4, 4]
    assert torch.equal(halves[1][1][:2], rows[[1, 3]])


def test_a_run_counts_the_tokens_of_its_ramp_and_resumes_exactly(load: Load, stopped: Load) -> None:
    ramp = ("train.batch_rows=8", "train.ramp_tokens=384", "train.tokens=1472")
    whole = load("name=whole", *ramp)
    assert (whole.steps, whole.planned_tokens) == (8, 1472)

    def history(recipe: Recipe) -> list[tuple[int, int, float]]:
        lines = read_journal(pretrain(recipe, quiet=True) / "journal.jsonl")
        return [(line["step"], line["tokens"], line["loss"]) for line in lines if line["event"] == "step"]

    lines = history(whole)
    sizes = [after[1] - before[1] for before, after in zip([(0, 0, 0.0), *lines], lines, strict=False)]
    assert [size // 32 for size in sizes] == [2, 2, 4, 6, 8, 8, 8, 8]
    assert history(stopped(load(*ramp), 3)) == lines
    one_row = history(load("name=one", *ramp, "train.micro_rows=1"))
    assert [line[:2] for line in one_row] == [line[:2] for line in lines]


def test_a_ramp_that_cannot_be_dealt_is_refused(load: Load) -> None:
    with pytest.raises(SettingsError, match="batch_rows: 6 must be a multiple of 4"):
        load("train.batch_rows=6", "train.ramp_tokens=100")
    with pytest.raises(SettingsError, match=r"train\.ramp_tokens: steps on a streamed corpus all have the same size"):
        load("train.batch_rows=8", "train.ramp_tokens=100", "data.stream=true")
    with pytest.raises(SettingsError, match=r"train\.batch_rows: 2 of a first step must be a multiple of"):
        pretrain(load("train.batch_rows=8", "train.ramp_tokens=100", "train.micro_rows=4"), quiet=True)

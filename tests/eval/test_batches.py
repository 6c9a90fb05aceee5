"""Rows cut into batches, and prefixes that are read once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch.distributed import DistNetworkError

from mesa_eval.reading.batches import plan_batches, tokens_read
from mesa_eval.reading.processes import Processes, join_processes
from mesa_eval.reading.scoring import Scorer
from mesalm import MesaForCausalLM

ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 12)), max_size=12)


@settings(deadline=None)
@given(ROWS, st.integers(1, 200))
def test_every_row_is_scored_once_behind_its_own_prefix(shapes: list[tuple[int, int, int]], budget: int) -> None:
    # rows of one label share `before` tokens at least, since the label's number is all that they hold
    rows = [[label] * before + [7, number] + [9] * after for number, (label, before, after) in enumerate(shapes)]
    firsts = [len(row) - 1 for row in rows]
    labels = [label for label, _, _ in shapes]
    batches = plan_batches(rows, firsts, labels, budget)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))
    for batch in batches:
        for row, slot in zip(batch.rows, batch.slots, strict=bool(batch.cut)):
            assert batch.cut < firsts[row]
            assert rows[batch.heads[slot]][: batch.cut] == rows[row][: batch.cut]
        longest = max(len(rows[row]) - 1 - batch.cut for row in batch.rows)
        assert len(batch.rows) * longest <= budget or len(batch.rows) == 1
    assert tokens_read(batches, rows) <= sum(len(row) - 1 for row in rows)


def test_a_prefix_ends_where_the_rows_or_the_context_do() -> None:
    same = list(range(100, 140))
    rows = [[*same, 1, 2, 3], [*same, 1, 5], [*same, 4, 2]]
    (batch,) = plan_batches(rows, [41, 41, 41], ["a"] * 3, 1000)
    assert (batch.cut, batch.heads, sorted(batch.rows)) == (40, (0,), [0, 1, 2])
    assert tokens_read([batch], rows) == 40 + 2 + 1 + 1
    (batch,) = plan_batches(rows, [30, 41, 41], ["a"] * 3, 1000)
    assert batch.cut == 29
    (batch,) = plan_batches(rows, [41, 41, 41], None, 1000)
    assert batch.cut == 0
    assert plan_batches([[5], [5]], [1, 1], ["a", "a"], 10) == []


def make_model(mixers: list[str]) -> MesaForCausalLM:
    return tiny_model(seed=3, vocab_size=258, mixers=mixers, max_position_embeddings=256, initializer_range=0.3)


@pytest.mark.parametrize(
    "mixers", [["mesa", "mesa"], ["softmax", "softmax"], ["linear", "softmax"], ["mesa", "softmax"]]
)
def test_continued_prefixes_give_the_scores_of_whole_rows(mixers: list[str], tokenizer) -> None:
    model = make_model(mixers)
    generator = np.random.default_rng(1)
    shared = [generator.integers(2, 258, length).tolist() for length in (70, 72, 40)]
    rows, firsts, labels = [], [], []
    for number in range(14):
        rows.append(shared[number % 3] + generator.integers(2, 258, 3 + number % 5).tolist())
        firsts.append(len(rows[-1]) - 1 - number % 2)
        labels.append(number % 3)
    scorer = Scorer(model, tokenizer, batch_tokens=150, quiet=True)
    whole = scorer.token_scores(rows, firsts)
    read = scorer.tokens_run
    continued = scorer.token_scores(rows, firsts, shared=labels)
    assert scorer.tokens_run - read < read / 2
    for one, other in zip(whole, continued, strict=True):
        # float32 sums in another order; the mesa solve stops at a residual of 1e-7
        np.testing.assert_allclose(one.nats, other.nats, atol=2e-4)
        np.testing.assert_array_equal(one.best, other.best)


def test_a_model_without_a_cache_reads_whole_rows(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    rows = [[5] * 30 + [number] for number in range(3)]
    scorer.token_scores(rows, [30] * 3, shared=["a"] * 3)
    assert scorer.tokens_run == 3 * 30


def test_processes_share_batches_and_errors(make, tokenizer) -> None:
    """Two processes, one after the other, each with its own half; together they hold what one alone does."""
    model = make.llama(258, seed=1)
    generator = np.random.default_rng(0)
    rows = [generator.integers(2, 258, length).tolist() for length in range(5, 30)]
    alone = Scorer(model, tokenizer, batch_tokens=60, quiet=True).token_scores(rows)
    halves: dict[int, object] = {}

    class Half(Processes):
        def gather(self, own, error=None):
            halves.update(own)
            return own

    for index in range(2):
        Scorer(model, tokenizer, batch_tokens=60, quiet=True, processes=Half(index, 2)).token_scores(rows)
    assert sorted(halves) == list(range(len(rows)))
    for number, one in enumerate(alone):
        np.testing.assert_array_equal(one.nats, halves[number].nats)
    with pytest.raises(ValueError, match="broken"):
        Processes().gather({}, ValueError("broken"))
    assert join_processes("cpu", {}) == Processes()


@pytest.mark.parametrize("error", [DistNetworkError("broken pipe"), RuntimeError("[gloo/tcp] Connection closed")])
def test_a_process_that_has_ended_is_told_of_in_one_line(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(parts: object) -> object:
        raise error

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    with pytest.raises(ValueError, match=r"^another process has ended or does not answer; fix that process, then run"):
        Processes(0, 2, "cpu").gather({})

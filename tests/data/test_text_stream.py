from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mesalm.data.bpe import Encoder
from mesalm.data.data_settings import DataSettings
from mesalm.data.documents import DataError
from mesalm.data.prepare import ChangedDataError, prepare
from mesalm.data.prepared import Prepared
from mesalm.data.stream import picks
from mesalm.data.text_stream import STEPS_AHEAD, StreamPosition, TextStream, text_stream

Records = Callable[..., list[dict[str, Any]]]
Writer = Callable[..., Path]
Maker = Callable[..., DataSettings]


@pytest.fixture
def streamed(records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path) -> DataSettings:
    """Settings of two sources: four files, and a dataset of `datasets` of one file."""
    rows = records(80)
    for shard in range(4):
        write_jsonl(f"a{shard}.jsonl", rows[shard::4])
    hub = {"name": "hub", "dataset": "json", "files": str(write_jsonl("b.jsonl", records(12, seed=3)))}
    sources = [{"name": "files", "files": str(tmp_path / "a*.jsonl"), "weight": 3}, {**hub, "weight": 1}]
    return data("", sources=sources, stream=True, stream_sample=30)


def stream_of(settings: DataSettings, prepared: Prepared, rank: int = 0, world: int = 1) -> TextStream:
    return text_stream(settings, prepared, 8, rank=rank, world=world, micro_rows=2)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def drawn(stream: TextStream, batches: int) -> list[Any]:
    return [(batch["input_ids"].tolist(), batch["position_ids"].tolist()) for batch in islice(stream, batches)]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_a_stream_goes_on_from_any_step_as_if_it_had_not_stopped(streamed: DataSettings, rank: int, world: int) -> None:
    prepared = prepare(streamed, quiet=True)
    whole, batches, places = stream_of(streamed, prepared, rank, world), [], {}
    for batch in islice(whole, whole.micro_batches * 60):  # beyond the end of the small source
        batches.append((batch["input_ids"].tolist(), batch["position_ids"].tolist()))
        if len(batches) % whole.micro_batches == 0:
            places[len(batches)] = json.dumps(whole.position.to_dict())
    assert whole.position.places[1]["passes"] > 0
    for cut in list(places)[::7]:
        later = stream_of(streamed, prepared, rank, world)
        later.position = StreamPosition.from_dict(json.loads(places[cut]))
        assert drawn(later, 3 * later.micro_batches) == batches[cut : cut + 3 * later.micro_batches]


def test_processes_share_the_text_and_leave_the_held_out_alone(streamed: DataSettings, records: Records) -> None:
    settings = streamed.model_copy(update={"sources": streamed.sources[:1]})
    prepared = prepare(settings, quiet=True)
    begin = prepared.manifest["tokenizer"]["bos_token_id"]
    held_out = set(prepared.documents("valid")["text"]) | set(prepared.documents("test")["text"])
    texts = [row["text"] for row in records(80)]
    expected = {tuple(ids) for ids in Encoder(prepared.tokenizer(), cut=True)([t for t in texts if t not in held_out])}
    assert 0 < len(held_out) < 30
    seen = []
    for rank in range(4):
        part = stream_of(settings, prepared, rank, 4).parts[0]
        documents: list[list[int]] = []
        while part.place["passes"] == 0:
            row = part.take()
            assert len(row["input_ids"]) == sum(row["segments"]) == 32
            for token in row["input_ids"]:
                if token == begin:
                    documents.append([])
                documents[-1].append(token)
        # the last row goes on into the next pass
        seen.append({tuple(document) for document in documents} & expected)
        assert all(tuple(document) in expected for document in documents[:-1])
    assert sum(map(len, seen)) - len(expected) <= 4
    assert set().union(*seen) == expected


class Counted:
    """Rows of one number, and how many were taken; row ``last`` is the last that can be had."""

    def __init__(self, number: int, last: int | None = None) -> None:
        self.number, self.place, self.last = number, 0, last

    def take(self) -> dict[str, list[int]]:
        if self.place == self.last:
            raise DataError("text.jsonl:7: broken")
        self.place += 1
        return {"input_ids": [self.number] * 4, "segments": [4]}


def test_weights_hold_over_all_processes_together() -> None:
    order = []
    for rank in range(2):
        parts: Any = [Counted(0), Counted(1)]
        stream = TextStream(parts, [3.0, 1.0], 8, rank=rank, world=2, micro_rows=2)
        order.append([row[0] for rows, _ in drawn(stream, 10) for row in rows])
        assert sum(stream.position.places) == 20
        assert stream.position.rows == 40
    steps = [[order[rank][at : at + 4] for rank in range(2)] for at in range(0, 20, 4)]
    assert [row for step in steps for share in step for row in share] == picks([3.0, 1.0], 0, 40)[0].tolist()


def test_rows_are_those_of_the_sources_in_turn(streamed: DataSettings) -> None:
    prepared = prepare(streamed, quiet=True)
    ahead, parts = stream_of(streamed, prepared), stream_of(streamed, prepared).parts
    chosen, _ = picks([3.0, 1.0], 0, 80)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = drawn(ahead, 40)
    # the thread has drawn no numbers, which the training would miss
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert [row for rows, _ in found for row in rows] == [parts[part].take()["input_ids"] for part in chosen]


def test_a_thread_reads_some_steps_ahead_until_the_iterator_is_closed() -> None:
    part: Any = Counted(0)
    stream = TextStream([part], [1.0], 8, micro_rows=2)
    batches = iter(stream)
    next(batches)
    end = time.monotonic() + 30
    while part.place < 2 + 8 * STEPS_AHEAD and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    assert part.place == 2 + 8 * STEPS_AHEAD
    assert len(readers()) == 1
    assert (stream.position.rows, stream.position.places) == (0, [0])
    batches.close()
    assert not readers()
    # a new iterator begins at the position, not where the thread was
    drawn(stream, 4)
    assert (stream.position.rows, stream.position.places) == (8, [8])


def test_closing_waits_for_the_batch_in_the_making_alone() -> None:
    part: Any = Counted(0)
    begun, go_on, take = threading.Event(), threading.Event(), part.take

    def gated() -> dict[str, list[int]]:
        if part.place == 2:
            begun.set()
            assert go_on.wait(30)
        return take()

    part.take = gated
    batches = iter(TextStream([part], [1.0], 8, micro_rows=2))
    next(batches)
    assert begun.wait(30)
    closing = threading.Thread(target=batches.close)
    closing.start()
    time.sleep(0.05)
    go_on.set()
    closing.join(30)
    assert part.place == 4
    assert not readers()


def test_an_error_comes_after_the_batches_before_it() -> None:
    parts: Any = [Counted(0, last=5)]
    stream = TextStream(parts, [1.0], 2, micro_rows=1)
    batches = iter(stream)
    assert len(list(islice(batches, 5))) == 5
    with pytest.raises(DataError, match=r"^text\.jsonl:7: broken$"):
        next(batches)
    assert stream.position.rows == 4
    assert not readers()
    assert not list(batches)


def test_a_stream_does_not_go_on_among_files_in_another_order(streamed: DataSettings, tmp_path: Path) -> None:
    orders = ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 3, 2))
    sources = [{"name": "files", "files": [str(tmp_path / f"a{number}.jsonl") for number in order]} for order in orders]
    begun, same, moved = (DataSettings.build({**streamed.model_dump(), "sources": [one]}, "data") for one in sources)
    expected = prepare(begun, quiet=True).contents()
    assert prepare(same, quiet=True, expected=expected).contents() == expected
    with pytest.raises(ChangedDataError, match=r"a3\.jsonl has moved within the order"):
        prepare(moved, quiet=True, expected=expected)


def test_prepared_data_are_of_the_sources_that_are_streamed(
    streamed: DataSettings, write_jsonl: Writer, records: Records
) -> None:
    begun = prepare(streamed, quiet=True)
    given = streamed.model_copy(update={"prepared": str(begun.path)})
    assert prepare(given, quiet=True, expected=begun.contents()).path == begun.path
    write_jsonl("a2.jsonl", records(9, seed=4))
    with pytest.raises(ChangedDataError, match=r"^a2\.jsonl has changed$"):
        prepare(given, quiet=True, expected=begun.contents())
    with pytest.raises(DataError, match=r"is of other sources than are streamed, a2\.jsonl has changed; leave it out"):
        prepare(given, quiet=True)


def test_what_cannot_be_streamed_is_told(streamed: DataSettings, write_jsonl: Writer, data: Maker) -> None:
    prepared = prepare(streamed, quiet=True)
    two, one = stream_of(streamed, prepared, 1, 2), stream_of(streamed, prepared)
    with pytest.raises(ValueError, match="the stream was read by 2 processes; resume with the same number"):
        one.position = two.position
    held = {"name": "files", "files": str(write_jsonl("held.jsonl", [{"text": "the text"}])), "use": "valid"}
    only = {"name": "files", "files": str(write_jsonl("only.jsonl", [{"text": "the text"}]))}
    alone = data("", sources=[only, held], stream=True)
    with pytest.raises(DataError, match="has no text to train on, or fewer documents than there are processes"):
        drawn(stream_of(alone, prepared, 1, 2), 1)

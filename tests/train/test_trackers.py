"""What installed trackers write of a run, read back from their own files."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesalm.journal import read_journal
from mesalm.train.pretrain import pretrain

Load = Callable[..., Any]


def journal(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_journal(run / "journal.jsonl") if line["event"] == "step"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what these packages warn of is theirs
def test_tensorboard_reads_the_losses_of_the_journal(load: Load) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    run = pretrain(load("track=[tensorboard]", "train.steps=4"), quiet=True)
    found = events.EventAccumulator(str(run / "mesalm"))
    found.Reload()
    scalars = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert [step for step, _ in scalars] == [1, 2, 3, 4]
    assert [value for _, value in scalars] == pytest.approx([loss for _, loss in journal(run)], rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_the_losses_of_the_journal_under_the_name_of_the_run(
    load: Load, start: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("trackio", reason="no trackio")
    there = tmp_path / "trackio"  # which it reads when it is imported
    process = start("track=[trackio]", "train.steps=4", environment={"TRACKIO_DIR": str(there)})
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    run = load().folder
    with sqlite3.connect(there / "mesalm.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics").fetchall()
    told = [(step, json.loads(line)) for _, step, line in rows]
    assert [(step, line["train/loss"]) for step, line in told if "train/loss" in line] == journal(run)
    assert {name for name, _, _ in rows} == {"tiny"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_reads_the_losses_of_the_journal_in_the_folder_of_the_run(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="no wandb")
    from wandb.proto import wandb_internal_pb2 as form

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = pretrain(load("track=[wandb]", "train.steps=4"), quiet=True)
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    found, names = [], []
    for content in leveldb_records(file.read_bytes()):
        record = form.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            names.append(record.run.display_name)
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in values:
            found.append((values["_step"], values["train/loss"]))
    assert found == journal(run)
    assert names[0] == "tiny"


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, records in parts, after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""

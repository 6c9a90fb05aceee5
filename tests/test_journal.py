"""The journal: appending, reading back, and what a resume overtakes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mesalm.journal import Journal, read_journal


def test_events_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", step=0, recipe={"name": "é"})
        journal.write("step", step=1, loss=math.inf, inner={"value": math.nan}, values=[1.5, math.nan])
        assert len(read_journal(path)) == 2  # flushed line by line
    assert read_journal(path) == [
        {"event": "start", "step": 0, "recipe": {"name": "é"}},
        {"event": "step", "step": 1, "loss": None, "inner": {"value": None}, "values": [1.5, None]},
    ]


def test_without_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Journal(None) as journal:
        journal.write("step", step=1)
        journal.sync()
    assert not list(tmp_path.iterdir())


def test_resume_overtakes_what_lay_beyond_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", step=0, life=1)
        for step in (1, 2, 3, 4):
            journal.write("step", step=step, loss=float(step))
        journal.write("valid", step=2, loss=0.2)
        journal.write("valid", step=4, loss=0.4)
        journal.write("stop", step=4, reason="SIGTERM")
    with Journal(path) as journal:
        journal.write("start", step=2, life=2)
        journal.write("step", step=3, loss=30.0)
        journal.write("end", step=3)
    events = read_journal(path)
    assert [(e["step"], e["loss"]) for e in events if e["event"] == "step"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(e["step"], e["loss"]) for e in events if e["event"] == "valid"] == [(2, 0.2)]
    assert [e["life"] for e in events if e["event"] == "start"] == [1, 2]
    assert [e["event"] for e in events if e["event"] in ("stop", "end")] == ["end"]


def test_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes('{"event": "step", "step": 1}\n{"event": "st\xc3'.encode("latin-1"))
    assert [event["step"] for event in read_journal(path)] == [1]
    with Journal(path) as journal:
        journal.write("step", step=2)
    assert [event["step"] for event in read_journal(path)] == [1, 2]


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "step", "step": 1}\nnonsense\n{"event": "step", "step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_journal(path)

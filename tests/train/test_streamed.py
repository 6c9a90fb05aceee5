"""Whole runs whose rows are read while they train: a source that breaks, and a signal while rows are waited for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesalm.cli import main
from mesalm.data import text_stream
from mesalm.interrupts import Interrupted
from mesalm.journal import read_journal
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

Load = Callable[..., Recipe]
STREAMED = ("data.stream=true", "data.stream_sample=20")


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_a_source_that_breaks_ends_the_run_with_one_line(
    corpus: Path, recipe_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text((corpus / "text.jsonl").read_text() * 3 + '{"text": 5}\n')
    words = [*STREAMED, f"data.sources.0.files={broken}", "train.batch_rows=40", "train.steps=30", "arms={}"]
    assert main(["train", str(recipe_file), *words]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "must be text" in line]
    assert errors == [
        f"mesalm train: {broken}:181: column 'text' must be text, not int; correct the record; or set "
        "data.skip_bad=true to skip it"
    ]
    # the steps before it were made, not cut off by the thread that was ahead
    assert len([line for line in read_journal(tmp_path / "runs/tiny/journal.jsonl") if line["event"] == "step"]) > 3
    assert not readers()
    assert main(["train", str(recipe_file), *words, "data.skip_bad=true"]) == 0
    assert [line["step"] for line in read_journal(tmp_path / "runs/tiny/journal.jsonl") if line["event"] == "end"] == [
        30
    ]


def test_control_c_while_rows_are_waited_for_ends_the_run_with_a_checkpoint(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, passes = text_stream._texts, []

    def slow(**arguments: Any) -> Iterator[dict[str, Any]]:
        passes.append(1)
        if len(passes) == 3:
            time.sleep(0.2)  # the loop has used up what was read ahead
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        yield from texts(**arguments)

    changes = (*STREAMED, "train.batch_rows=40", "validate.every=0", "checkpoint.every=100")
    whole = pretrain(load("name=whole", *changes), quiet=True)
    recipe = load("name=broken", *changes)
    monkeypatch.setattr(text_stream, "_texts", slow)
    with pytest.raises(Interrupted) as caught:
        pretrain(recipe, quiet=True)
    assert caught.value.code == 130
    assert not readers()
    newest = Checkpoints(recipe.folder / "checkpoints").newest()
    assert newest is not None
    assert newest.name < "step-00000012"
    pretrain(recipe, quiet=True)
    files = [run / "final/model.safetensors" for run in (whole, recipe.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()

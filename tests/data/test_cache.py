"""The cache of prepared data: killed and interrupted preparations, several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from mesalm.data.data_settings import DataSettings
from mesalm.data.documents import DataError
from mesalm.data.prepare import prepare
from mesalm.data.prepared import Prepared
from mesalm.locks import locked

Records = Callable[..., list[dict[str, Any]]]
Writer = Callable[..., Path]
Maker = Callable[..., DataSettings]


def test_an_interrupted_preparation_leaves_nothing(
    records: Records, write_jsonl: Writer, data: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = data(write_jsonl("x.jsonl", records(30)))
    plain = datasets.Dataset.from_file

    def interrupted(path: str, **rest: Any) -> Any:
        if path.endswith("test.arrow"):  # the rows of the last split
            raise KeyboardInterrupt
        return plain(path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "from_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, quiet=True)
    parent = tmp_path / "cache" / "prepared"
    assert [path.suffix for path in parent.iterdir()] == [".lock"]
    # What a killed process leaves behind is neither believed nor kept.
    key = next(parent.iterdir()).stem
    for name in (key, f"{key}.partial"):
        (parent / name / "rows").mkdir(parents=True)
    prepared = prepare(settings, quiet=True)
    assert prepared.path == parent / key
    assert sorted(path.name for path in parent.iterdir()) == [key, f"{key}.lock"]
    with pytest.raises(DataError, match="not a folder of prepared data"):
        Prepared(parent)


def test_a_cache_that_cannot_be_written_is_named(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(DataError, match="taken/prepared: cannot be created"):
        prepare(data(write_jsonl("x.jsonl", records(9)), cache_dir=str(tmp_path / "taken")), quiet=True)


def test_what_a_killed_preparation_left_goes_whatever_is_prepared_next(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    parent = tmp_path / "cache" / "prepared"
    for key in ("a" * 24, "b" * 24):
        (parent / f"{key}.partial" / "rows").mkdir(parents=True)
    settings = data(write_jsonl("x.jsonl", records(30)))
    with locked(parent / f"{'b' * 24}.lock", lambda holder: None):
        # what another process is at work on stays
        assert prepare(settings, quiet=True).path.parent == parent
        assert [path.name for path in parent.glob("*.partial")] == [f"{'b' * 24}.partial"]
    prepare(settings, quiet=True)  # found in the cache, and the sweeping goes on
    assert not list(parent.glob("*.partial"))


def test_who_is_waited_for_is_told(
    records: Records, write_jsonl: Writer, data: Maker, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = data(write_jsonl("x.jsonl", records(30)))
    first = prepare(settings, quiet=True).path
    shutil.rmtree(first)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(first.with_name(f"{first.name}.lock"), lambda holder: None):
            os.write(writing, b".")
            time.sleep(1)
        os._exit(0)
    os.read(reading, 1)
    assert prepare(settings).path == first
    os.waitpid(process, 0)
    assert (
        f"waiting for process {process} on {os.uname().nodename}, which is preparing the same data"
        in capfd.readouterr().err
    )


def prepare_beside(settings: DataSettings, here: Path, ready: Any) -> None:
    """Prepare as one of two processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ready.wait(60)
    (here / f"path-{os.getpid()}").write_text(str(prepare(settings).path))


def test_two_processes_build_once(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = data(write_jsonl("x.jsonl", records(60)))
    # Forked, because a fresh interpreter would spend the time on imports.
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(2)
    both = [context.Process(target=prepare_beside, args=(settings, tmp_path, ready)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    assert [process.exitcode for process in both] == [0, 0]
    paths = {path.read_text() for path in tmp_path.glob("path-*")}
    assert len(list(tmp_path.glob("path-*"))) == 2
    assert len(paths) == 1
    assert capfd.readouterr().err.count("packing ") == 1
    assert Prepared(paths.pop()).manifest["splits"]["train"]["rows"] > 0

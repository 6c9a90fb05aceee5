"""Signals in a process of its own: the first is noted, a second Ctrl-C ends it at once, none is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesalm.cli import main
from mesalm.data.corpora import SOURCES
from mesalm.data.documents import Document, Faults
from mesalm.data.read_files import FileSource
from mesalm.interrupts import SIGNALS, Interrupted, Interrupts, cleared_away


def interrupt_twice() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        print("noted", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("still here", flush=True)
        interrupts.answered = True


def test_second_control_c_aborts_but_its_echo_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    process = os.fork()
    if process == 0:
        try:
            os.environ["TORCHELASTIC_RUN_ID"] = "x"  # as torchrun does, which sends a second one after each Ctrl-C
            interrupt_twice()
            del os.environ["TORCHELASTIC_RUN_ID"]
            interrupt_twice()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGINT
    shown = capfd.readouterr()
    assert shown.out == "noted\nstill here\nnoted\n"
    assert shown.err.count("Ctrl-C again") == 2


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_was_not_answered_is_given_back(number: signal.Signals) -> None:
    given: list[int] = []
    before = signal.signal(number, lambda number, frame: given.append(number))
    try:
        with Interrupts() as answered:
            os.kill(os.getpid(), number)
            assert answered.received == number
            answered.answered = True
        assert given == []
        with contextlib.suppress(ValueError), Interrupts():
            os.kill(os.getpid(), number)
            raise ValueError("a fault that another would take for the end of the run")
        assert given == [number]
        os.kill(os.getpid(), number)
        assert given == [number, number]  # the handler of before is back
    finally:
        signal.signal(number, before)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleared_away(), Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_is_ended_in_one_line_by_any_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Interrupting(FileSource):
        def documents(self, faults: Faults) -> Iterator[Document]:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(10)
            yield from super().documents(faults)

    monkeypatch.setitem(SOURCES, "files", Interrupting)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a line of text"}\n')
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"name: tiny\ntrain: {{steps: 1}}\n"
        f"data: {{sources: [{{name: files, files: {text}}}], cache_dir: {tmp_path / 'cache'}}}\n"
    )
    assert main(["prepare", str(recipe)]) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err.splitlines()[-1] == "mesalm prepare: ended by SIGUSR1"
    assert [path.name for path in (tmp_path / "cache" / "prepared").iterdir() if path.is_dir()] == []


def test_exit_codes() -> None:
    assert Interrupted(signal.SIGINT).code == 130
    assert Interrupted(signal.SIGTERM).code == 143

"""The commands: help, exit codes, one-line errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesalm.cli import main, parse, parser
from mesalm.commands import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args([command, "--help"])
    assert left.value.code == 0
    assert f"mesalm {command}" in capsys.readouterr().out


def test_train_help_lists_every_field(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mesalm.train.recipe import Recipe

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser().parse_args(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(line.strip() for line in lines)
    assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []
    for key, _, _, description in Recipe.describe():
        assert key in shown
        assert description in shown
    assert "model.mixers" in shown


def test_a_traceback_can_be_asked_for_anywhere(tmp_path: Path) -> None:
    for arguments in (["eval", "/nowhere", "--traceback"], ["lab", "report", "--out", str(tmp_path), "--traceback"]):
        with pytest.raises((ValueError, FileNotFoundError)):
            main(arguments)


def test_settings_and_models_may_follow_options() -> None:
    assert parse(["train", "demo", "a=1", "--arm", "mesa", "b=2"]).overrides == ["a=1", "b=2"]
    assert parse(["compare", "A", "--suite", "full", "B"]).models == ["A", "B"]
    assert parse(["lab", "run", "1", "--plan", "steps=3"]).claims == ["1", "steps=3"]
    assert parse(["lab", "report", "--claims", "a.py"]).claims == Path("a.py")
    assert parse(["plot", "A", "--out", "x.svg", "B"]).runs == ["A", "B"]
    for arguments in (["train", "demo", "--no-such-option"], ["publish", "A", "B", "C"]):
        with pytest.raises(SystemExit) as left:
            parse(arguments)
        assert left.value.code == 2


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mesalm", "lab", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_a_reader_of_the_help_may_leave(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as left:  # whose end, with what was not written, is no error either
        monkeypatch.setattr(sys, "stdout", left)
        assert main(["train", "--help"]) == 1
    assert capsys.readouterr().err == ""


def test_a_command_without_an_output_still_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as python has it after `>&-`
    assert main(["lab", "list"]) == 0


def test_what_a_terminal_cannot_show_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr("mesalm.commands.lab.show", lambda options: print("mean \N{GREEK SMALL LETTER GAMMA}"))
    assert main(["lab", "list"]) == 0
    assert shown.getvalue() == b"mean ?\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device of a full disk is Linux's")
@pytest.mark.parametrize("arguments", [["lab", "list"], ["train", "--help"]])
def test_output_that_finds_no_room_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1

"""An evaluation that was killed goes on where it stopped, and nothing else is taken for the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from mesa_eval.evaluate import evaluate
from mesa_eval.measures.scores import Scores
from mesalm.cli import main


def test_what_is_stored_is_not_measured_again(save_model, text_file: str, pair_file: str, tmp_path: Path) -> None:
    model = save_model("one", 1)
    options = {"texts": [text_file], "quiet": True, "device": "cpu", "out": tmp_path / "out"}
    (first,) = evaluate([model], tasks=["copying"], **options)
    assert all(part.key for part in first.parts)
    seen: set[Path] = set()

    def measured() -> list[str]:
        """Return the names of the parts written since the last call."""
        new = set((tmp_path / "out/scores/parts").glob("*.json")) - seen
        seen.update(new)
        return sorted(json.loads(path.read_text())["name"] for path in new)

    assert measured() == ["copying", "length", "positions", "task/copying", "text"]
    written = {path: path.stat().st_mtime_ns for path in seen}
    (second,) = evaluate([model], tasks=["copying", pair_file], **options)
    assert measured() == ["task/letters"]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert second.parts[:5] == first.parts
    assert Scores.read(tmp_path / "out" / "scores" / "one.json") == second
    evaluate([model], tasks=["copying"], seed=1, **options)
    assert measured() == ["copying", "length", "positions", "task/copying", "text"]
    evaluate([save_model("two", 2)], tasks=["none"], **options)
    assert measured() == ["copying", "length", "positions", "text"]


def asked_of(model: str, text_file: str, out: Path) -> list[str]:
    asked = ["eval", model, "--text", text_file, "--task", "copying", "--task", "case_change", "--device", "cpu"]
    return [*asked, "--out", str(out)]


def stop_after_first_task(out: Path, sent: signal.Signals) -> RemovableHandle:
    """Have this process sent a signal when a model is asked again after the first of its tasks is written."""

    def stop(*_: Any) -> None:
        if len(list(out.glob("scores/parts/*"))) == 5:
            os.kill(os.getpid(), sent)

    return register_module_forward_pre_hook(stop)


@pytest.fixture
def interrupted_by(tmp_path: Path) -> Iterator[None]:
    hook = stop_after_first_task(tmp_path / "out", signal.SIGINT)
    yield
    hook.remove()


@pytest.mark.usefixtures("interrupted_by")
def test_ctrl_c_says_where_the_evaluation_goes_on(
    save_model, text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked_of(save_model("one", 1), text_file, tmp_path / "out")) == 130
    shown = capsys.readouterr()
    said = f"mesalm eval: interrupted; finished measurements are in {tmp_path / 'out/scores'}; run the same command"
    # what else is there, transformers' bar of weights loaded, ends before it
    assert shown.err.splitlines()[-1] == f"{said} to continue"
    assert shown.out == ""
    assert len(list((tmp_path / "out/scores/parts").iterdir())) == 5


def test_a_killed_evaluation_goes_on_where_it_was(
    save_model, text_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, out = save_model("one", 1), tmp_path / "out"
    process = os.fork()
    if process == 0:
        try:
            stop_after_first_task(out, signal.SIGKILL)
            main(asked_of(model, text_file, out))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert capfd.readouterr().out == ""
    kept = {path: path.stat().st_mtime_ns for path in (out / "scores" / "parts").iterdir()}
    assert len(kept) == 5
    assert not (out / "scores" / "one.json").exists()
    options = {"texts": [text_file], "tasks": ["copying", "case_change"], "device": "cpu", "quiet": True}
    (went_on,) = evaluate([model], out=out, **options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (whole,) = evaluate([model], **options)
    assert went_on.measures == whole.measures


def test_a_task_that_cannot_run_says_why(save_model, text_file: str, tmp_path: Path) -> None:
    lines = [
        '{"input": "' + "word " * 40 + f'{n}", "output": "b", "split": "{split}"}}'
        for split in ("pool", "eval")
        for n in ((0, 1) if split == "pool" else (2, 3))
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    (item,) = evaluate(
        [save_model("one", 1)],
        texts=[text_file],
        tasks=["copying", str(tmp_path / "long.jsonl")],
        quiet=True,
        device="cpu",
    )
    reason = "at 0 shots a prompt exceeds 64 tokens or there are too few items"
    assert [(task.name, task.skipped) for task in item.tasks] == [
        ("copying", ""),
        ("long", reason),
    ]
    assert f"long: not measured: {reason}" in [note.text for note in item.parts[-1].notes]
    (tmp_path / "short.txt").write_text("too few words")
    (item,) = evaluate([save_model("one", 1)], texts=[str(tmp_path / "short.txt")], quiet=True, device="cpu")
    assert [bool(task.skipped) for task in item.tasks] == [True] * 3
    assert "give more text" in item.tasks[0].skipped


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "compare"])
def test_two_processes_give_the_numbers_of_one(
    command: str, save_model, text_file: str, pair_file: str, tmp_path: Path
) -> None:
    names = ["one", "two"] if command == "compare" else ["one"]
    arguments = [command, *(save_model(name, seed) for seed, name in enumerate(names)), "--text", text_file]
    arguments += ["--task", pair_file, "--task", "key_value_recall", "--device", "cpu"]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "mesalm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, before in (("alone", ["mesalm"]), ("shared", launch)):
        done = subprocess.run(
            [sys.executable, "-m", *before, *arguments, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Models") == 1
        assert done.stdout.count("report: ") == (command == "compare")
    for name in names:
        alone, shared = (Scores.read(tmp_path / run / "scores" / f"{name}.json") for run in ("alone", "shared"))
        assert alone.measures == shared.measures
        assert alone.tokens_run == shared.tokens_run
    if command == "compare":
        rows = [json.loads((tmp_path / run / "report.json").read_text())["rows"] for run in ("alone", "shared")]
        assert rows[0] == rows[1]
        assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
            "report.html",
            "report.json",
            "report.md",
            "scores",
        ]

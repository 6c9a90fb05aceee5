"""An evaluation that was killed goes on where it stopped, and nothing else is taken for the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesa_eval.scores import Scores
from mesa_eval.scoring import Scorer
from mesa_eval.suite import evaluate


def test_what_is_stored_is_not_measured_again(
    save_model, text_file: str, pair_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model("one", 1)
    options = {"texts": [text_file], "quiet": True, "device": "cpu", "out": tmp_path / "out"}
    (first,) = evaluate([model], tasks=["copying"], **options)
    assert all(part.key for part in first.parts)
    calls: list[str] = []
    plain = Scorer.token_scores

    def counted(self, rows, firsts=None, what="", shared=None):
        calls.append(what)
        return plain(self, rows, firsts, what, shared)

    monkeypatch.setattr(Scorer, "token_scores", counted)
    (second,) = evaluate([model], tasks=["copying", pair_file], **options)
    assert calls == ["letters"]
    assert second.parts[:4] == first.parts
    assert Scores.read(tmp_path / "out" / "scores" / "one.json") == second
    calls.clear()
    evaluate([model], tasks=["copying"], seed=1, **options)
    assert calls == ["text", "positions", "copying", "copying"]
    calls.clear()
    evaluate([save_model("two", 2)], tasks=["none"], **options)
    assert calls == ["text", "positions", "copying"]


def test_a_killed_evaluation_goes_on_where_it_stopped(save_model, text_file: str, tmp_path: Path) -> None:
    model = save_model("one", 1)
    out = tmp_path / "out"
    program = f"""
import os, signal
from mesa_eval import few_shot, parts
plain = parts.score_task
def killed(scorer, task, *rest):
    if task.name == "case_change":
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(scorer, task, *rest)
parts.score_task = killed
from mesa_eval.suite import evaluate
tasks = ["copying", "case_change"]
evaluate([{model!r}], texts=[{text_file!r}], tasks=tasks, out={str(out)!r}, device="cpu", quiet=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {path: path.stat().st_mtime_ns for path in (out / "scores" / "parts").iterdir()}
    assert len(kept) == 4
    assert not (out / "scores" / "one.json").exists()
    (scores,) = evaluate(
        [model], texts=[text_file], tasks=["copying", "case_change"], out=out, device="cpu", quiet=True
    )
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (whole,) = evaluate([model], texts=[text_file], tasks=["copying", "case_change"], device="cpu", quiet=True)
    assert scores.measures == whole.measures


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
    assert [(task.name, task.skipped) for task in item.tasks] == [
        ("copying", ""),
        ("long", "no prompt fits the window of 64 tokens"),
    ]
    assert "long: not measured: no prompt fits the window of 64 tokens" in item.parts[-1].notes
    (tmp_path / "short.txt").write_text("too few words")
    (item,) = evaluate([save_model("one", 1)], texts=[str(tmp_path / "short.txt")], quiet=True, device="cpu")
    assert [bool(task.skipped) for task in item.tasks] == [True] * 4
    assert "give more text" in item.tasks[0].skipped


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(save_model, text_file: str, pair_file: str, tmp_path: Path) -> None:
    model = save_model("one", 1)
    arguments = ["eval", model, "--text", text_file, "--task", pair_file, "--task", "copying", "--device", "cpu"]
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
    alone, shared = (Scores.read(tmp_path / name / "scores" / "one.json") for name in ("alone", "shared"))
    assert alone.measures == shared.measures
    assert alone.tokens_run == shared.tokens_run

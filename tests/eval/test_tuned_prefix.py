"""Prompt tuning through the door, and its gain over plain shots in a comparison on the same queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesa_eval.scoring import Scorer
from mesa_eval.tuning_rows import tuning_rows, tuning_task
from mesalm.cli import main


def test_rows_come_from_the_pool_and_are_scored_on_the_answer(
    save_model: Callable[..., str], pair_file: str, class_file: str
) -> None:
    scorer = Scorer.open(save_model("base", 0, length=200), device="cpu", quiet=True)
    for file in (pair_file, class_file):
        task = tuning_task(file, 0)
        rows = tuning_rows(scorer, task, [0, 2], 30, seed=1)
        assert rows == tuning_rows(scorer, task, [0, 2], 30, seed=1)
        assert rows != tuning_rows(scorer, task, [0, 2], 30, seed=2)
        pool = {(item.input, item.output) for item in task.pool}
        counts = set()
        for tokens, first in rows:
            prompt, answer = (scorer.tokenizer.decode(part) for part in (tokens[1:first], tokens[first:]))
            *shown, asked = prompt.split("\n\n")
            counts.add(len(shown))
            question = asked.split("\n")[0].split(": ")[1]
            assert (question, answer.strip()) in pool
        assert counts == {0, 2}
    with pytest.raises(ValueError, match="need a pool larger than 12"):
        tuning_rows(scorer, tuning_task(class_file, 0), [12], 2, seed=0)


def test_a_tuned_folder_is_compared_with_its_model(
    save_model: Callable[..., str],
    pair_file: str,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = save_model("base", 0, length=200), str(tmp_path / "tuned")
    arguments = ["tune", base, "--task", pair_file, "--out", out, "--device", "cpu", "vectors=4", "steps=40"]
    assert main([*arguments, "rows=60", "valid_rows=8", "batch_rows=8", "shots=[0,1]"]) == 0
    assert "mesalm compare" in capsys.readouterr().out
    compared = ["compare", out, base, "--text", text_file, "--task", pair_file, "--device", "cpu"]
    assert main([*compared, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (row,) = (row for row in report["rows"] if row["section"] == "task/letters" and row["key"].endswith("0/answer"))
    gain = row["differences"][0]["interval"]
    assert gain["value"] < -0.5  # bits a byte of the answers, which the plain random model cannot know
    assert gain["high"] < 0
    assert main(["sample", out, "--prompt", "Q: bcd1", "--tokens", "3", "--temperature", "0"]) == 0
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "holds a finished prefix" in capsys.readouterr().err

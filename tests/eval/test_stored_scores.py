"""Stored scores: the same report from them, and one line for those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_scores import campaign, made

from mesa_eval.evaluate import read_scores, report
from mesalm.cli import main


def test_stored_scores_make_the_same_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = campaign(2)
    report(scores, tmp_path / "first", quiet=True)
    for item in scores:
        item.write(tmp_path / "apart" / "scores")
    assert read_scores([tmp_path / "first"]) == scores
    assert read_scores([tmp_path / "apart"]) == scores
    assert read_scores([tmp_path / "apart/scores/mesa-s1.json"]) == [scores[1]]
    assert main(["compare", "--from-scores", str(tmp_path / "apart"), "--out", str(tmp_path / "again")]) == 0
    old, new = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("first", "again"))
    assert [old[key] for key in ("rows", "family", "scores")] == [new[key] for key in ("rows", "family", "scores")]
    shown = capsys.readouterr().out
    assert "mesa less softmax" in shown
    assert f"report: {tmp_path / 'again' / 'report.html'}" in shown


def test_scores_measured_after_a_report_are_not_left_out(tmp_path: Path) -> None:
    made("a", 0).write(tmp_path / "scores")
    made("b", 0).write(tmp_path / "scores")
    report(read_scores([tmp_path]), tmp_path, quiet=True)
    assert [item.model.name for item in read_scores([tmp_path])] == ["a", "b"]
    for later in (made("b", -0.1), made("c", 0)):
        path = later.write(tmp_path / "scores")
        with pytest.raises(ValueError, match=rf"does not hold what scores/{path.name} holds; name"):
            read_scores([tmp_path])
        made("b", 0).write(tmp_path / "scores")
    assert [item.model.name for item in read_scores([tmp_path / "report.json"])] == ["a", "b"]
    assert [item.model.name for item in read_scores([tmp_path / "scores"])] == ["a", "b", "c"]

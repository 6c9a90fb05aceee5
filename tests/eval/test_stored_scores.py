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


def test_a_report_made_anew_keeps_its_baseline_and_its_arms(tmp_path: Path) -> None:
    scores = campaign(2)
    ours = ",".join(item.model.name for item in scores if "mesa" in item.model.name)
    report(scores, tmp_path, baseline="ours", arms=[f"ours={ours}"], quiet=True)
    before = json.loads((tmp_path / "report.json").read_text())
    assert before["baseline"] == "ours"
    for place, out in ((tmp_path, ()), (tmp_path / "report.json", ("--out", str(tmp_path / "again")))):
        assert main(["compare", "--from-scores", str(place), *out]) == 0
        made_anew = json.loads(((tmp_path / "again" if out else tmp_path) / "report.json").read_text())
        assert [made_anew[key] for key in ("baseline", "arms", "rows")] == [
            before[key] for key in ("baseline", "arms", "rows")
        ]
    assert main(["compare", "--from-scores", str(tmp_path), "--baseline", "last"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["baseline"] == "softmax"


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


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"numerator": [[1.0]] * 29}, "bits_per_byte needs a numerator and a denominator for each of 30 units"),
        ({"numerator": [[1.0, 1.0]] * 30}, "bits_per_byte needs finite numbers, as many for each unit"),
        ({"numerator": [[float("nan")]] * 30}, "bits_per_byte needs finite numbers, as many for each unit"),
        ({"denominator": [[0.0]] * 30}, "bits_per_byte has no value: its denominators are all 0"),
        ({"transform": "log"}, "Input should be '' or 'exp'"),
        ({"section": "nosuch"}, "bits_per_byte: 'nosuch' is not a section of this version's reports"),
        ({"section": "task/pairs"}, "'task/pairs' is not a section of this version's reports"),
        ({"units": [], "numerator": [], "denominator": []}, "for each of 0 units"),
    ],
)
def test_measures_without_a_value_are_refused_in_one_line(
    changed: dict, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made("a", 0).to_dict()
    data["parts"][0]["measures"][0] |= changed
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    assert main(["compare", "--from-scores", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mesalm compare: {path}: contains no readable scores (")
    assert fault in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["seed", "name", "command", "text"])
def test_scores_without_their_protocol_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    scores = made("a", 0)
    del scores.protocol[name]
    with pytest.raises(ValueError, match=rf"contains no readable scores \(protocol\.{name}: Field required\)"):
        read_scores([scores.write(tmp_path)])

"""The curves of runs: what is drawn stands where the journals say."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mesalm.cli import main
from mesalm.journal import Journal

SVG = "{http://www.w3.org/2000/svg}"
STEPS = ((100, 10.0, 4.0), (200, 30.0, 2.0), (300, 40.0, 1.0))


def write_run(folder: Path, *, half: float, undone: bool = False) -> Path:
    """Write a journal of three steps and a validation half way between the first two."""
    with Journal(folder / "journal.jsonl") as journal:
        journal.write("start", step=0)
        if undone:
            journal.write("step", step=3, tokens=300, seconds=70.0, loss=99.0)
            journal.write("start", step=0)
        for step, (tokens, seconds, loss) in enumerate(STEPS, 1):
            numbers = {"learning_rate": 1e-3 / step, "gradient_norm": float("nan") if step == 2 else 1.0}
            speed = {"tokens_per_second": 10.0 * step}
            journal.write("step", step=step, tokens=tokens, seconds=seconds, loss=loss, **numbers, **speed)
            if step == 1:
                journal.write("valid", step=1, tokens=150, loss=half)
        journal.write("sample", step=3, tokens=300, prompt="a", text="SAMPLED")
    return folder


def drawn(panel: ElementTree.Element) -> tuple[list[list[tuple[float, float]]], list[tuple[float, float]]]:
    """Return the lines and the marks inside the frame of a panel."""
    lines = [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))]
        for group in panel.findall(f"{SVG}g")
        if group.get("id", "").startswith("line2d")
        for path in group.findall(f"{SVG}path")
        if path.get("clip-path")
    ]
    marks = [
        (float(use.get("x", 0)), float(use.get("y", 0)))
        for group in panel.findall(f"{SVG}g/{SVG}g")
        if group.get("clip-path")
        for use in group.findall(f"{SVG}use")
    ]
    return lines, marks


def test_runs_are_drawn_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "first", half=2.0), write_run(tmp_path / "second", half=4.0, undone=True)
    out = tmp_path / "made/curves.svg"
    assert main(["plot", str(first), str(second), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"drawn: {out}\n"
    text = out.read_text()
    assert "SAMPLED" not in text
    assert text.count(f">{first}<") == text.count(f">{second}<") == 1  # the key
    root = ElementTree.fromstring(text)
    panels = [group for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("axes_")]
    for x, panel in enumerate(panels[:2]):  # by tokens, by seconds
        lines, marks = drawn(panel)
        lines = [line for line in lines if len(line) > 1]
        assert len(lines) == len(marks) == 2
        assert lines[0] == lines[1]  # the undone step of the second is not in it
        begin, middle, end = lines[0]
        share = (middle[0] - begin[0]) / (end[0] - begin[0])
        assert share == pytest.approx((1 / 2, 2 / 3)[x], abs=1e-4)
        assert marks[0][0] == pytest.approx((begin[0] + middle[0]) / 2, abs=1e-4)
        assert marks[0][1] == pytest.approx(middle[1], abs=1e-4)  # half of the first is the loss of step 2
        assert marks[1][1] == pytest.approx(begin[1], abs=1e-4)
    norms, _ = drawn(panels[3])
    assert [len(line) for line in norms] == [2, 2]  # the norm that is not finite is left out


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "new/journal.jsonl") as journal:
        journal.write("start", step=0)
    for folder, said in ((tmp_path, "no journal.jsonl here"), (tmp_path / "new", "the journal has no step yet")):
        assert main(["plot", str(folder), "--out", str(tmp_path / "x.svg")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()

"""The report of a grid: numbers made by hand, a page that refers to nothing outside, the command from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from html_page import Page
from tiny import TINY

from mesa_eval.synthetic import grid as grids
from mesa_eval.synthetic.figures import grid_figure
from mesa_eval.synthetic.grid import lines, read_grid
from mesa_eval.synthetic.report import report_grid
from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesa_eval.synthetic.scores import score_guesses
from mesalm.cli import main
from mesalm.data.synthetic.mad import NoisyRecall
from mesalm.draw import draw_svg_file


def made_grid(
    folder: Path,
    right: dict[str, dict[int, list[float]]],
    places: list[int] | None = None,
    axis: str = "task.length",
    task: str = "mqar",
) -> Path:
    """Write a grid of two points whose cells got ``right`` of 4 in each row, by arm and seed."""
    settings = []
    for length in (16, 32):
        for arm, by_seed in right.items():
            runs = []
            for seed, rows in by_seed.items():
                cell = f"{arm}-s{seed}-{length}"
                table = [[value] * len(places or [0]) for value in rows]
                four = [[4.0] * len(places or [0]) for _ in rows]
                measure = RowScores("accuracy", "accuracy", "higher", table, four, places or [])
                (folder / "cells" / cell).mkdir(parents=True)
                (folder / "cells" / cell / "result.json").write_text(json.dumps(SyntheticScores([measure]).plain()))
                runs.append({"folder": cell, "rate": 0.01, "seed": seed, "steps": 10, "parameters": 5})
            settings.append(
                {
                    "arm": arm,
                    "point": {axis: str(length)},
                    "task": {"name": task, "length": length, **({"pairs": 4} if task == "mqar" else {})},
                    "score_seed": 0,
                    "state_numbers": 1200 + length,
                    "best_rate": 0.01,
                    "swept": runs[:1],
                    "runs": runs,
                }
            )
    summary = {
        "name": "made",
        "missing": 0,
        "arms": list(right),
        "axes": {axis: ["16", "32"]},
        "seeds": list(next(iter(right.values()))),
        "settings": settings,
    }
    (folder / "results.json").write_text(json.dumps(summary))
    (folder / "recipe.yaml").write_text("name: made <&>\n")
    return folder


def test_several_seeds_are_a_mean_a_range_and_a_paired_t_interval(tmp_path: Path) -> None:
    folder = made_grid(
        tmp_path, {"mesa": {0: [4, 4], 1: [4, 2], 2: [2, 2]}, "softmax": {0: [2, 2], 1: [2, 2], 2: [2, 0]}}
    )
    mesa, softmax, *_ = lines(read_grid(folder), "accuracy")
    assert mesa.values == {0: 1.0, 1: 0.75, 2: 0.5}
    assert (mesa.mean, mesa.spread, mesa.difference) == (0.75, (0.5, 1.0), None)
    assert softmax.mean == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    # differences -0.5, -0.25, -0.25: mean -1/3, sd 0.14434, t(0.975, 2) = 4.30265
    assert softmax.difference is not None
    assert softmax.difference.value == pytest.approx(-1 / 3)
    assert softmax.difference.high == pytest.approx(-1 / 3 + 4.30265 * 0.14433757 / 3**0.5, abs=1e-5)
    assert softmax.difference.units == 3
    assert softmax.guesses == {"chance": 1 / 4096, "a value shown": 0.25}
    assert softmax.null == "a value shown"


def test_the_null_of_longer_rows_is_theirs_and_an_older_version_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_grid(tmp_path, {"mesa": {0: [4, 4, 0, 2]}}, task="noisy-recall")
    path = folder / "cells/mesa-s0-16/result.json"
    (measure,) = json.loads(path.read_text())["measures"]
    longer = {**measure, "key": "accuracy_4x", "times": 4, "numerator": [[4], [2]], "denominator": [[4], [4]]}
    path.write_text(json.dumps({"measures": [measure, longer]}))
    for key, length, rows in (("accuracy", 16, 4), ("accuracy_4x", 64, 2)):
        (line, *_) = lines(read_grid(folder), key)
        wanted = score_guesses(NoisyRecall(length=length), rows, seed=0)
        assert line.guesses == {"chance": 1 / 8, **{name: scores.value for name, scores in wanted.items()}}
        assert line.null == "the commonest answer shown"
    for kept in (folder / "guesses").iterdir():
        kept.write_text("{}")
    assert lines(read_grid(folder), "accuracy")[0].null == "chance"  # as kept
    monkeypatch.setattr(grids, "GUESSES", grids.GUESSES + 1)
    assert lines(read_grid(folder), "accuracy")[0].null == "the commonest answer shown"


def test_one_seed_that_is_left_of_several_has_no_interval(tmp_path: Path) -> None:
    """An interval over rows would stand among those over seeds, and is much narrower."""
    rows = [4, 4, 0, 2] * 10
    folder = made_grid(tmp_path, {"mesa": {0: rows, 1: rows, 2: rows}, "softmax": {0: [2] * 40, 1: rows, 2: rows}})
    for seed in (1, 2):
        (folder / f"cells/softmax-s{seed}-16/result.json").write_text('{"diverged": "loss is not finite"}')
    _, softmax, *_ = lines(read_grid(folder), "accuracy")
    assert softmax.values == {0: 0.5}
    assert softmax.spread is None
    assert softmax.difference is not None
    assert (softmax.difference.value, softmax.difference.low, softmax.difference.high) == (-0.125, None, None)
    text = report_grid(folder, quiet=True).with_suffix(".md").read_text()
    assert "−0.125 (one unit: no interval)" in text
    assert "- 2 runs that diverged are left out." in text  # other rates need not have diverged


def test_one_seed_is_resampled_by_rows(tmp_path: Path) -> None:
    folder = made_grid(tmp_path, {"mesa": {0: [4, 4, 0, 2] * 10}, "softmax": {0: [4, 2, 0, 2] * 10}})
    mesa, softmax, *_ = lines(read_grid(folder), "accuracy")
    assert mesa.mean == 0.625
    assert mesa.spread is not None
    # 40 rows with standard deviation 0.4146: an error of 0.0655, so about 0.128 to each side
    assert mesa.spread[1] - mesa.spread[0] == pytest.approx(4 * 0.0655, rel=0.1)
    assert softmax.difference is not None
    assert softmax.difference.value == pytest.approx(-0.125)
    assert softmax.difference.excludes_zero


@pytest.mark.parametrize("places", [[], [1, 2, 3]])
def test_the_page_holds_every_figure_and_nothing_from_outside(tmp_path: Path, places: list[int]) -> None:
    folder = made_grid(tmp_path, {"mesa": {0: [4, 3], 1: [4, 2]}, "softmax": {0: [2, 2], 1: [2, 1]}}, places)
    page = report_grid(folder, quiet=True).read_text()
    parsed = Page(page)
    assert parsed.count("svg") == parsed.count("table") == 1
    parsed.check_references()
    assert "name: made &lt;&amp;&gt;" in page
    assert not re.search(r"#0[1-4]0\d0", page)  # every marker colour became a variable
    for words in ("mesa", "softmax", "chance", "0.875", "1,216", "1,232"):
        assert words in page
    report = json.loads((folder / "report.json").read_text())
    assert [row["mean"] for row in report["rows"]][:2] == [0.8125, 0.4375]
    assert report["rows"][0].get("by_place", []) == [0.8125] * len(places)
    files = list(folder.glob("*.svg"))
    assert [path.name for path in files] == ["accuracy.svg"] * bool(places)
    assert all(re.search(r">0\.\d+</text>", path.read_text()) for path in files)  # less than a decade has ticks too
    assert "| 16 | mesa |" in (folder / "report.md").read_text()


def test_an_arm_that_failed_in_the_first_panel_is_in_the_legend(tmp_path: Path) -> None:
    folder = made_grid(tmp_path, {"mesa": {0: [4, 3]}, "softmax": {0: [2, 2]}}, [1, 2, 3])
    (folder / "cells/softmax-s0-16/result.json").write_text('{"diverged": "loss is not finite"}')
    grid = read_grid(folder)
    drawn = grid_figure(grid, grid.measures()[0], draw_svg_file)
    assert drawn is not None
    assert all(re.search(rf">\s*{arm}\s*<", drawn) for arm in grid.arms)


def test_models_of_several_sizes_are_also_drawn_by_the_size_of_their_state(tmp_path: Path) -> None:
    right = {"mesa": {0: [4, 3]}, "softmax": {0: [2, 2]}}
    page = report_grid(made_grid(tmp_path, right, axis="model.hidden_size"), quiet=True).read_text()
    assert page.count("<svg") == 2
    assert "accuracy by numbers in the state" in page


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"name": "mqar", "vocabulary": 16, "length": 8, "pairs": 2, "train_rows": 8}, "null: a value shown"),
        ({"name": "noisy-recall", "length": 16, "train_rows": 8}, "null: the commonest answer shown"),
        ({"name": "automata", "length": 40, "train_rows": 8}, "trigram"),
        ({"name": "regression", "size": 4, "pairs": 5}, "ridge"),
        ({"name": "linear-dynamics", "size": 4, "length": 6}, "last state"),
    ],
)
def test_the_command_trains_scores_and_reports(
    tmp_path: Path, task: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "name": "small",
        "output_dir": str(tmp_path),
        "task": task,
        "model": {**TINY, "num_hidden_layers": 1},
        "train": {"steps": 2, "batch_rows": 4, "device": "cpu"},
        "score": {"every": 2, "valid_rows": 4, "test_rows": 6},
        "arms": {"mesa": {"model.mixers": "mesa"}, "softmax": {"model.mixers": "softmax"}},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["synth", str(path), "--report-only"]) == 2
    assert "no run of this grid has ended; leave out --report-only" in capsys.readouterr().err
    assert main(["synth", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "softmax" in shown
    assert f"report: {tmp_path / 'small' / 'report.html'}" in shown
    assert f"| ({words}) |" in (tmp_path / "small" / "report.md").read_text()
    if task["name"] == "regression":  # two heads of 16, no convolution: gram and cross; keys and values of 5 pairs
        found = json.loads((tmp_path / "small" / "results.json").read_text())["settings"]
        assert [setting["state_numbers"] for setting in found] == [2 * 16 * (16 + 16), 2 * 32 * 10]
    if task["name"] == "mqar":
        assert main(["synth", str(path), "--report-only", "seeds=[0,1]"]) == 0
        assert "2 runs have not ended" in capsys.readouterr().out
    assert main(["synth", str(path), "task.pears=3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no results.json; run"):
        report_grid(tmp_path)

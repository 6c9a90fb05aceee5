"""Scripts that make the tables of the results: pairs are of one seed, and no arm has two models of a seed."""

from __future__ import annotations

import gzip
import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mesa_eval.tasks import find_tasks

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a script by its name."""
    monkeypatch.syspath_prepend(RESULTS)
    return importlib.import_module


@pytest.fixture
def script(scripts: Any) -> Any:
    return scripts("context_seeds")


def test_differences_are_paired_by_seed_and_by_item(script: Any) -> None:
    """The interval is for new items too: all seeds differ by .1, and the items by more or less than that."""

    def scored(means: dict[int, float], spread: float) -> dict[int, Any]:
        items = np.linspace(-1, 1, 40)[:, None]
        return {seed: script.resample(mean + spread * items, np.ones((40, 1))) for seed, mean in means.items()}

    mesa, others = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 0: 0.4, 1: 0.6}
    gap = script.less(scored(mesa, 0.3), scored(others, 0.3))
    assert gap == "+0.100 [+0.100, +0.100], p 0.25"  # the items' share cancels
    gap = script.less(scored(mesa, 0.3), scored(others, 0.1))
    low, high = (float(number) for number in re.findall(r"[+-]\d\.\d+", gap)[1:3])
    assert gap.startswith("+0.100 ")
    assert low < 0.07
    assert high > 0.13
    assert script.less(scored(mesa, 0), scored({1: 0.5, 2: 0.7, 3: 0.0}, 0)).startswith("+0.200 ")  # of seeds 1 and 2
    assert script.less(scored(mesa, 0), scored({2: 0.8, 3: 0.8}, 0)) == ""


def test_an_arm_with_other_seeds_than_mesa_says_so(script: Any) -> None:
    """Fewer seeds look steadier than they are; the declared setting of mesa is no arm of its own."""
    chosen = script.SETS["float32"]
    one = script.resample(np.ones((2, 1)), np.ones((2, 1)))
    seed = {f"task/{task}/{shown}/accuracy": one for task in chosen.panels for shown in chosen.shown}
    counts = {"mesa": 3, "linear": 3, "delta": 2, "hybrid": 4, "declared-mesa": 3, "counted": 3}
    figure = Figure()
    script.draw(figure, chosen, {arm: dict.fromkeys(range(counts.get(arm, 0)), seed) for arm in script.ARMS})
    for panel in figure.axes:
        labels = panel.get_legend_handles_labels()[1]
        mesa, linear, hybrid = (script.ARMS[arm] for arm in ("mesa", "linear", "hybrid"))
        assert labels == [mesa, linear, f"{hybrid}, 4 seeds", script.ARMS["counted"]]


def test_the_counted_column_is_of_the_prompts_that_models_are_asked(script: Any) -> None:
    (task,) = find_tasks("new_labels", [], 0)
    right = []
    for index in range(40):
        query = task.query(index, 0, 4, 20, 0)
        shown = Counter(re.findall(r" = (.*)$", query.prompt, flags=re.MULTILINE))
        most = [name for name, count in shown.items() if count == max(shown.values())]
        right.append((query.answer.strip() in most) / len(most))
    assert script.label_counts(40)["task/new_labels/4/accuracy"].value == pytest.approx(np.mean(right))


def test_counting_says_nothing_where_both_labels_were_shown_equally_often(scripts: Any) -> None:
    predictors = scripts("rule_predictors")
    task = next(task for task in predictors.RULES if task.name == "attribute_rules_of_three")
    chosen = predictors.balanced(task.name, 6)
    assert 100 < len(chosen) < 200
    for index in chosen[:20]:
        shown, asked, _ = task._episode(int(index), 0)
        assert sorted(example.shown for example in shown[1:]).count(asked.label) == 3
    assert predictors.predictors(task, 6)["nearest, then counting"] == 1.0  # what is left decides


def test_two_models_of_one_arm_and_seed_are_refused(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [{"model": {"name": f"rules-{rate}-mesa-s0"}, "parts": []} for rate in ("1e-3", "2e-3")]
    kept = tmp_path / "context/rules/scores.json.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(gzip.compress(json.dumps({"scores": models}).encode()))
    monkeypatch.setattr(script, "HERE", tmp_path)
    with pytest.raises(ValueError, match="another model of arm"):
        script.read_scores("rules")

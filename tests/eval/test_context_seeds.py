"""The script that makes the tables of models with several seeds: pairs are of one seed."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RESULTS)
    return importlib.import_module("context_seeds")


def test_differences_are_of_models_with_one_seed(script: Any) -> None:
    mesa, others = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 0: 0.4, 1: 0.6}
    assert script.less(mesa, others).startswith("+0.100 [+0.100, ")
    assert script.less(mesa, {0: 0.4, 1: 0.6, 3: 0.8}) == ""  # as many, but not the same
    assert script.less(mesa, {0: 0.4, 1: 0.6}) == ""


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

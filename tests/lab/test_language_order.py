"""The claim about language models: the paper's choices, losses by position, differences paired by seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mesalm.journal import read_journal
from mesalm.lab.experiments.language import (
    ARMS,
    in_context_score,
    in_standard_errors,
    language_order,
    language_recipe,
)
from mesalm.lab.workbench import Workbench
from mesalm.model.configuration_mesa import MesaConfig


@pytest.fixture
def sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("MESALM_CACHE", str(tmp_path / "cache"))
    words = ["the", "mesa", "layer", "reads", "what", "the", "keys", "wrote", "before", "it", "was", "asked"]
    for number in range(40):
        line = " ".join(words[(number * place) % len(words)] for place in range(1, 60))
        (tmp_path / f"{number}.txt").write_text(line, encoding="utf-8")
    return {
        "source": {"name": "files", "files": str(tmp_path / "*.txt")},
        "vocabulary": 280,
        "length": 32,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "dpfp": 1,
        "steps": 3,
        "batch": 4,
        "learning_rate": 1e-2,
        "seeds": 2,
        "test_rows": 20,
    }


def test_every_arm_is_trained_with_every_seed_and_told_apart(sizes: dict[str, Any], tmp_path: Path) -> None:
    findings = language_order(Workbench(1, tmp_path / "nets", quiet=True), sizes)
    (folder,) = (tmp_path / "nets").iterdir()
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert runs == {f"{arm}-s{seed}" for arm in ARMS for seed in (2, 3)}
    other = language_recipe(Workbench(1, tmp_path / "nets"), {**sizes, "steps": 4}, "mesa", 2)
    assert other.folder.parent != folder  # other sizes do not meet these models
    assert [len(curve.y) for curve in findings.curves] == [31] * 3
    found = findings.controls
    for arm, curve in zip(ARMS, findings.curves, strict=True):
        both = [found[f"loss of {arm}, seed {seed}"] for seed in (2, 3)]
        assert found[f"loss of {arm}"] == pytest.approx(sum(both) / 2) == pytest.approx(sum(curve.y) / 31)
        assert both[0] != both[1]
        assert 3.0 < both[0] < math.log(280) + 0.5  # little is learnt in three steps
    assert all(math.isfinite(value) for value in findings.values.values())


def test_models_have_the_papers_choices(sizes: dict[str, Any], tmp_path: Path) -> None:
    recipe = language_recipe(Workbench(0, tmp_path, quiet=True), {**sizes, "layers": 3}, "mesa", 0)
    config = MesaConfig(**recipe.model)
    assert config.layer_mixers == ["softmax", "mesa", "mesa"]
    assert (config.gates, config.read_norm, config.conv_size_of("mesa"), config.dpfp) == (False, False, 0, 1)
    assert (config.qk_l2_norm, config.ridge_init, config.block_mlps) == (True, 1.0, True)


def test_losses_are_those_of_held_out_rows_by_position(sizes: dict[str, Any], tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path / "nets", quiet=True)
    recipe = language_recipe(bench, sizes, "linear", 0)
    once = bench.text_losses(recipe, 10_000)
    events = read_journal(recipe.folder / "journal.jsonl")
    (valid,) = (event["loss"] for event in events if event["event"] == "valid")
    assert float(once.mean()) == pytest.approx(valid, rel=1e-5)  # what the training itself measured on all of them
    torch.testing.assert_close(bench.text_losses(recipe, 10_000), once)  # opened, not trained again
    assert once.shape == (31,)
    assert once.dtype == torch.float64


def test_rates_are_tuned_for_each_arm_on_other_rows_than_are_scored(sizes: dict[str, Any], tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path / "nets", quiet=True)
    del sizes["learning_rate"]
    sizes |= {"learning_rates": [1e-6, 3e-2], "conv_size": 4, "seeds": 2, "steps": 8}
    found = language_order(bench, sizes)
    assert {found.controls[f"rate of {arm}"] for arm in ARMS} == {3e-2}  # with the other nothing is learned
    linear, softmax, mesa = (found.controls[f"loss of {arm}"] for arm in ("linear", "softmax", "mesa"))
    share = found.values["share of the gap from linear to softmax that mesa closes"]
    assert share * (linear - softmax) == pytest.approx(linear - mesa)
    config = MesaConfig(**language_recipe(bench, {**sizes, "learning_rate": 1e-2}, "mesa", 0).model)
    assert [config.conv_size_of(mixer) for mixer in ("softmax", "mesa", "linear")] == [4, 4, 4]


def test_statistics_by_hand() -> None:
    # mean 2, sd 1, three pairs: 2 / (1 / sqrt 3)
    assert in_standard_errors([1.0, 2.0, 3.0]) == pytest.approx(2 * 3**0.5)
    # 16 positions: the last two less the third and fourth
    assert in_context_score(torch.arange(16.0)) == 14.5 - 2.5

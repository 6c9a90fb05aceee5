"""A sweep of settings: what is planned, that finished cells stay, and what is said about the grid's edges."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mesalm.cli import main
from mesalm.journal import Journal, read_journal
from mesalm.settings import SettingsError
from mesalm.train.recipe import Recipe
from mesalm.train.sweep import Sweep, SweptLosses, plan_sweep, report_sweep, run_sweep


def plan(recipe_file: Path, *words: str, arms: list[str] | None = None) -> Sweep:
    return plan_sweep(str(recipe_file), words, arms or ["fast"])


def test_a_run_is_planned_for_each_combination_and_arm(recipe_file: Path) -> None:
    words = ("optim.learning_rate=1e-3,2e-3", "model.mixers=mesa,softmax", "optim.betas=[0.9,0.95]", "train.steps=3")
    cells = plan(recipe_file, *words, arms=["mesa", "fast"]).cells
    assert [cell.recipe.name for cell in cells][:3] == [
        "tiny-mesa-optim.learning_rate-0.001-model.mixers-mesa",
        "tiny-fast-optim.learning_rate-0.001-model.mixers-mesa",
        "tiny-mesa-optim.learning_rate-0.001-model.mixers-softmax",
    ]
    assert len(cells) == 8
    for cell in cells:
        assert (cell.recipe.optim.learning_rate, cell.recipe.model["mixers"]) == cell.values
        assert cell.recipe.steps == 3
        assert cell.recipe.optim.betas == (0.9, 0.95)
    rates = plan(recipe_file, "optim.learning_rate=1e9,1e-9").cells  # a name holds no plus
    assert [cell.recipe.name.partition("learning_rate-")[2] for cell in rates] == ["1e09", "1e-09"]
    signs = plan(recipe_file, "model.forget_bias=-2,2").cells
    assert [cell.recipe.name.partition("forget_bias-")[2] for cell in signs] == ["-2", "2"]
    pairs = plan(recipe_file, "optim.betas=[0.9,0.95],[0.8,0.9]").cells
    assert [cell.recipe.optim.betas for cell in pairs] == [(0.9, 0.95), (0.8, 0.9)]
    prompts = plan(recipe_file, "sample.prompts=[a \U0001f600],[b]").cells
    assert [cell.recipe.sample.prompts for cell in prompts] == [["a \U0001f600"], ["b"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.steps=3"], "nothing is swept"),
        (["train.steps=3,3"], "two runs would be named"),
        (["train.steps=3,,4"], "train.steps"),
        (["train.steps=3,4", "train.steps=5,6"], "train.steps is given twice"),
        (["train.steps=3,4", " train.steps =5"], "train.steps is given twice"),
        (["train.steps=2024-01-01,2024-01-02"], "train.steps: must be a valid integer"),
        (["train.stepps=3,4"], "did you mean 'steps'"),
        (["train.steps=3,none"], "give exactly one of tokens and steps"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(recipe_file: Path, words: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        plan(recipe_file, *words)
    assert "\n" not in str(caught.value)


def test_the_same_command_trains_only_what_is_missing(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(recipe_file), "--arm", "fast", "train.steps=2"]
    assert main([*command, "optim.learning_rate=1e-2,1e-1"]) == 0
    runs = tmp_path / "runs"
    journals = {path: path.read_bytes() for path in runs.glob("*/journal.jsonl")}
    assert len(journals) == 2
    capsys.readouterr()
    assert main([*command, "optim.learning_rate=1e-3,1e-2,1e-1"]) == 0
    assert all(path.read_bytes() == content for path, content in journals.items())
    losses = [
        next(event["loss"] for event in read_journal(path) if event["event"] == "valid")
        for rate in ("0.001", "0.01", "0.1")
        for path in [runs / f"tiny-fast-optim.learning_rate-{rate}" / "journal.jsonl"]
    ]
    printed = capsys.readouterr().out
    shown = [line.split("|")[-2].strip(" *") for line in printed.splitlines() if line.startswith("| tiny")]
    assert shown == [f"{loss:.4f}" for loss in losses]
    table = (runs / "tiny-sweep-optim.learning_rate.md").read_text()
    assert table in printed
    figure = (runs / "tiny-sweep-optim.learning_rate.svg").read_text()
    assert figure.count("<use ") >= 3
    assert "optim.learning_rate" in figure


@pytest.mark.parametrize(
    ("word", "losses", "said"),
    [
        ("optim.learning_rate=1e-3,2e-3,4e-3", (3, 2, 1), "best at 0.004, the largest tried; try 0.008"),
        ("optim.learning_rate=4e-3,1e-3,2e-3", (3, 1, 2), "best at 0.001, the smallest tried; try 0.0005"),
        ("optim.learning_rate=1e-3,2e-3,4e-3", (3, 1, 2), ""),
        ("optim.learning_rate=1e-3,2e-3,4e-3", (3, 1, math.inf), ""),
        ("model.num_hidden_layers=1,2", (1, 2), "best at 1, the smallest tried\n"),
        ("model.num_hidden_layers=1,2", (2, 1), "best at 2, the largest tried; try 4"),
        ("model.forget_bias=2.0,0.0", (2, 1), "best at 0, the smallest tried; try -2"),
        ("model.forget_bias=-2.0,2.0", (1, 2), "best at -2, the smallest tried; try -6"),
        ("optim.weight_decay=0,0.1", (2, 1), "best at 0.1, the largest tried; try 0.2"),
        ("optim.weight_decay=0,0.1", (1, 2), "best at 0, the smallest tried\n"),
        ("model.mixers=mesa,softmax", (1, 2), ""),
        ("train.log_every=1,2", (1, 1), ""),  # decides nothing
        ("seed=1,2", (1, 2), ""),
        ("data.seed=1,2", (2, 1), ""),
        ("optim.learning_rate=1e-3,2e-3", (math.inf, math.inf), ""),
    ],
)
def test_a_best_value_at_the_edge_of_the_grid_is_said(
    recipe_file: Path, tmp_path: Path, word: str, losses: tuple[float, ...], said: str
) -> None:
    (tmp_path / "runs").mkdir()
    sweep = plan(recipe_file, word)
    named = {cell.recipe.name: loss for cell, loss in zip(sweep.cells, losses, strict=True)}
    text = report_sweep(sweep, SweptLosses(named))
    assert said in text
    assert ("tried" in text) == bool(said)
    assert text.count("diverged") == sum(map(math.isinf, losses))


def test_runs_on_other_tokens_are_compared_by_bytes(recipe_file: Path, tmp_path: Path) -> None:
    losses = {300: (3.0, 1.2), 320: (3.1, 1.1)}

    def train(recipe: Recipe) -> Path:
        loss, bits = losses[recipe.data.vocab_size]
        with Journal(recipe.folder / "journal.jsonl") as journal:
            journal.write("valid", step=1, loss=loss, bits_per_byte=bits)
        return recipe.folder

    measured = run_sweep(plan(recipe_file, "data.vocab_size=300,320"), train)
    assert (measured.unit, *measured.by_run.values()) == ("bits_per_byte", 1.2, 1.1)
    words = ("arms={small: {data.vocab_size: 300}, large: {data.vocab_size: 320}}", "seed=1,2")
    by_arm = run_sweep(plan(recipe_file, *words, arms=["small", "large"]), train)
    assert (by_arm.unit, *by_arm.by_run.values()) == ("bits_per_byte", 1.2, 1.1, 1.2, 1.1)
    text = report_sweep(plan(recipe_file, "data.vocab_size=300,320"), measured)
    assert "validation bits per byte" in text
    assert "best at 320" in text
    assert run_sweep(plan(recipe_file, "optim.eps=1e-8,1e-9"), train).unit == "loss"


def test_a_run_that_reads_nothing_finite_is_shown_as_diverged(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.steps=2", "optim.learning_rate=1e-3,1e9", "model.mixers=mesa", "train.clip=none"]
    assert main(["sweep", str(recipe_file), "--arm", "fast", *words]) == 0
    assert "| 1e09 | diverged |" in capsys.readouterr().out

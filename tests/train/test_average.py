"""The running average of the weights: its value, its resume, and where it is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mesalm.journal import read_journal
from mesalm.train.average import WeightAverage
from mesalm.train.checkpoint import CheckpointError, Checkpoints
from mesalm.train.optim import OptimSettings, build_optimiser
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe
from mesalm.train.step import update_where_finite

Load = Callable[..., Recipe]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_average_is_the_exponential_one(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    average = WeightAverage(model, 0.75)
    optimiser = build_optimiser(model, OptimSettings(name=name, learning_rate=0.1))
    average.follow(optimiser)
    wanted = None
    for _ in range(4):
        model(torch.randn(5, 3)).square().mean().backward()
        optimiser.step()
        weight = model[0].weight.detach().double()
        wanted = weight.clone() if wanted is None else 0.75 * wanted + 0.25 * weight
    assert torch.allclose(average.model[0].weight.double(), wanted, atol=1e-7)
    assert not torch.allclose(average.model[0].weight, model[0].weight, atol=1e-3)


def test_a_step_that_is_left_out_does_not_move_it() -> None:
    model = torch.nn.Linear(3, 4)
    average = WeightAverage(model, 0.75)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    average.follow(optimiser)
    wanted = None
    for step in range(5):
        model(torch.randn(5, 3)).square().mean().backward()
        loss = torch.tensor(float("nan") if step == 3 else 1.0)
        update_where_finite(optimiser, optimiser, loss, torch.tensor(1.0))
        if step != 3:
            weight = model.weight.detach().double()
            wanted = weight.clone() if wanted is None else 0.75 * wanted + 0.25 * weight
    assert torch.allclose(average.model.weight.double(), wanted, atol=1e-7)


def averages(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final-average" / "model.safetensors")


def lines(run: Path, event: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_journal(run / "journal.jsonl") if line["event"] == event]


def test_a_run_writes_validates_and_resumes_its_average(load: Load, stopped: Load) -> None:
    plain = pretrain(load("name=plain"), quiet=True)
    whole = pretrain(load("name=whole", "train.average=0.5"), quiet=True)
    assert lines(whole, "step") == lines(plain, "step")
    assert lines(whole, "valid") == lines(plain, "valid")
    run = pretrain(stopped(load("train.average=0.5"), 6), quiet=True)
    for one, other in zip(averages(run).values(), averages(whole).values(), strict=True):
        assert torch.equal(one, other)
    assert lines(run, "valid_average") == lines(whole, "valid_average")
    assert [step for step, _ in lines(whole, "valid_average")] == [4, 8, 12]
    assert lines(whole, "valid_average") != lines(whole, "valid")
    model = AutoModelForCausalLM.from_pretrained(whole / "final-average")
    assert torch.equal(model.model.norm.weight, averages(whole)["model.norm.weight"])


def test_a_run_that_grows_keeps_its_first_average_and_names_the_steps_of_its_model(load: Load) -> None:
    changes = ("train.average=0.5", "schedule.name=constant", "checkpoint.every=2")
    run = pretrain(load(*changes, "train.steps=4"), quiet=True)
    names = ("final", "final-average")
    before = [(run / name / "model.safetensors").read_bytes() for name in names]
    shutil.rmtree(run / "checkpoints/step-00000004")  # as the line on a damaged checkpoint says
    pretrain(load(*changes, "train.steps=5"), quiet=True)
    assert [(run / f"{name}-4" / "model.safetensors").read_bytes() for name in names] == before
    assert [(run / name / "model.safetensors").read_bytes() for name in names] != before
    assert not (run / "final-2").exists()


def test_a_damaged_average_is_named(load: Load, stopped: Load) -> None:
    recipe = stopped(load("train.average=0.5", "checkpoint.every=0"), 3)
    newest = Checkpoints(recipe.folder / "checkpoints").newest()
    assert newest is not None
    (newest / "average" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"average.model\.safetensors is damaged; delete"):
        pretrain(recipe, quiet=True)

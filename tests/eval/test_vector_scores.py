"""Regression on the pairs of a sequence: against numpy, against a map that is known, and against each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mesa_eval.synthetic.scores import score_guesses, score_model
from mesa_eval.synthetic.vector_scores import best_ridge, last_states
from mesalm.data.synthetic.drawn_stream import drawn_batch
from mesalm.data.synthetic.tasks import TASKS
from mesalm.draw import DASHES


def test_regressions_oracles_stand_in_the_order_of_theory() -> None:
    task: Any = TASKS["regression"].build({"size": 5, "pairs": 12, "noise": 0.5})
    found = {name: scores.measures[0].columns for name, scores in score_guesses(task, 4000, seed=0).items()}
    # y = W x with entries of W of variance 1/d: E y^2 = 1 + noise^2; 4,000 sequences of 5 entries, error below 0.02
    assert np.allclose(found["zero"], 1.25, atol=0.06)
    assert np.allclose([found[name][0] for name in found], found["zero"][0])
    one, several = (found[f"gradient step, {rates}"] for rates in ("one rate", "rate by pairs"))
    assert (found["ridge"][1:] < several[1:]).all()
    assert (several[1:] < one[1:] + 0.01).all()  # rates are of other sequences, which costs less than this
    assert several.mean() < one.mean()
    assert (found["ridge"][1:] < found["least squares"][1:]).all()
    assert found["least squares"][5] > 2  # as many pairs as unknowns: noise is interpolated
    assert (np.diff(found["ridge"]) < 0.02).all()
    assert 0.25 < found["ridge"][11] < 0.75


def test_without_noise_the_map_is_known_after_as_many_pairs_as_entries() -> None:
    for name, settings in (("regression", {"pairs": 9}), ("linear-dynamics", {"length": 9})):
        task = TASKS[name].build({"size": 4, "noise": 0.0, **settings})
        errors = score_guesses(task, 50, seed=0)["least squares"].measures[0].columns
        assert errors[3] > 1e-3
        assert (errors[5:] < 1e-6).all()


def test_the_gradient_step_of_one_rate_is_linear_attention_by_hand() -> None:
    """One linear layer has no other rate for each number of pairs."""
    task = TASKS["linear-dynamics"].build({"size": 4, "length": 9, "noise": 0.1})
    steps, targets = [], []
    for split in ("valid", "test"):
        batch = drawn_batch(task, 50, 3, split=split)  # type: ignore[arg-type]  # the names of two splits
        x, y = (batch[name].double().numpy() for name in ("inputs", "targets"))
        steps.append(np.tril(x @ x.swapaxes(1, 2), -1) @ y)
        targets.append(y)
    rate = np.linalg.lstsq(steps[0].reshape(-1, 1), targets[0].ravel(), rcond=None)[0].item()
    by_hand = np.square(rate * steps[1] - targets[1]).mean((0, 2))
    found = score_guesses(task, 50, seed=3)["gradient step, one rate"].measures[0].columns
    assert np.allclose(found, by_hand, rtol=1e-6)  # errors are stored to seven digits


def test_dynamics_last_state_is_what_it_says() -> None:
    task = TASKS["linear-dynamics"].build({"size": 4, "length": 9})
    found = score_guesses(task, 50, seed=3)
    batch = drawn_batch(task, 50, 3)
    by_hand = (batch["inputs"] - batch["targets"]).double().square().mean((0, 2)).numpy()
    assert np.allclose(found["last state"].measures[0].columns, by_hand, rtol=1e-5)


def test_a_state_seen_in_part_is_regressed_on_as_many_observations_as_it_needs() -> None:
    x = torch.arange(6.0).view(1, 3, 2)
    assert last_states(x, 2).tolist() == [[[0, 0, 0, 0], [2, 3, 0, 1], [4, 5, 2, 3]]]
    assert last_states(x, 4).tolist() == [[[0] * 8] * 3]  # never complete
    task = TASKS["linear-dynamics"].build({"size": 2, "hidden": 5, "length": 24, "noise": 0.0})
    found = {name: scores.measures[0].columns for name, scores in score_guesses(task, 200, seed=0).items()}
    assert len(found) <= len(DASHES)  # so that no two curves of a figure look the same
    # without noise the map from three observations is known once there are as many pairs as it has columns, but for
    # badly conditioned ones; one observation never tells the next
    assert found["ridge on 3 states"][12:].mean() < 2e-2 * found["ridge"][12:].mean()


def test_the_best_ridge_is_that_of_the_prior() -> None:
    batch = drawn_batch(TASKS["regression"].build({"size": 10, "pairs": 12, "noise": 1.0}), 2000, 0)
    x, y = batch["inputs"][:, ::2].double(), batch["targets"][:, ::2].double()
    assert best_ridge(x, y) == 10.0  # d sigma^2


@pytest.mark.parametrize("name", ["regression", "linear-dynamics"])
def test_a_model_is_scored_on_the_same_sequences_as_the_guesses(name: str) -> None:
    task: Any = TASKS[name].build({"size": 3})

    class Zero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(()))

        def forward(self, inputs: torch.Tensor) -> Any:
            return SimpleNamespace(predictions=torch.zeros_like(inputs))

    scores = score_model(Zero(), task, "test", 20, seed=1, batch_rows=8)
    assert scores.plain() == score_guesses(task, 20, seed=1)["zero"].plain()
    assert scores.better == "lower"

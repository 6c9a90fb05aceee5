"""Scores on tasks of vectors: squared error an entry by number of shots or position, beside what regression makes."""

from __future__ import annotations

import math

import torch
from torch import nn

from mesa_eval.synthetic.least_squares import (
    best_rates,
    best_ridge,
    gradient_predictions,
    last_states,
    ridge_predictions,
)
from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.data.synthetic.drawn_stream import Split, drawn_batch
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask

DIGITS = 7
"""Significant digits kept of an error, as many as float32 has."""


def score_vectors(
    model: nn.Module, task: VectorTask, split: Split, rows: int, *, seed: int, batch_rows: int
) -> SyntheticScores:
    """Score a model in evaluation mode on ``rows`` sequences of a split."""
    device = next(model.parameters()).device
    batch = drawn_batch(task, rows, seed, split=split)
    given = {name: tensor for name, tensor in batch.items() if name in ("inputs", "places")}
    with torch.no_grad():
        parts = [
            model(**{name: tensor[at : at + batch_rows].to(device) for name, tensor in given.items()}).predictions.cpu()
            for at in range(0, rows, batch_rows)
        ]
    return _scores(task, torch.cat(parts)[:, _queries(task)], batch["targets"][:, _queries(task)])


def vector_guesses(task: VectorTask, rows: int, *, seed: int) -> dict[str, SyntheticScores]:
    """Score regression on the pairs seen so far, and simpler guesses, on the test sequences.

    Pairs are (x_i, y_i), or each state with the next one. The rates of the gradient step are fitted on the valid
    sequences, one for each number of pairs. Where a state is seen in part, regression on one observation cannot be
    exact; regression on as many as the state needs stands beside it, its ridge fitted on the valid sequences.
    """
    batch, other = (drawn_batch(task, rows, seed, split=split) for split in ("test", "valid"))
    queries = _queries(task)
    x, y = batch["inputs"][:, queries], batch["targets"][:, queries]
    other_x, other_y = other["inputs"][:, queries], other["targets"][:, queries]
    rates = best_rates(other_x, other_y)
    found = {
        "ridge": ridge_predictions(x, y, task.size * task.noise**2),
        "least squares": ridge_predictions(x, y, 0.0),
        "one gradient step": gradient_predictions(x, y, rates),
        "zero": torch.zeros_like(y),
    }
    if not isinstance(task, ContextRegression):
        found["last state"] = x
    if isinstance(task, LinearDynamics) and task.hidden is not None:
        count = math.ceil(task.hidden / task.size)
        ridge = best_ridge(last_states(other_x, count), other_y)
        found[f"ridge on {count} states"] = ridge_predictions(last_states(x, count), y, ridge)
    return {name: _scores(task, predictions, y) for name, predictions in found.items()}


def _queries(task: VectorTask) -> list[int]:
    return list(task.query_positions() if isinstance(task, ContextRegression) else range(task.sequence_length))


def _scores(task: VectorTask, predictions: torch.Tensor, targets: torch.Tensor) -> SyntheticScores:
    outputs = task.output_size if isinstance(task, ContextRegression) else task.size
    errors = (predictions.double() - targets.double())[..., :outputs].square().sum(-1)
    numerator = [[float(f"{value:.{DIGITS}g}") for value in row] for row in errors.tolist()]
    denominator = [[float(outputs)] * errors.shape[1]] * len(errors)
    return SyntheticScores(
        [RowScores("error", "squared error an entry", "lower", numerator, denominator, list(range(errors.shape[1])))]
    )

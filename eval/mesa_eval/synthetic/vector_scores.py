"""Scores on vector tasks: squared error per entry by number of shots or position, compared with regression."""

from __future__ import annotations

import math

import torch
from torch import nn

from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.data.synthetic.drawn_stream import Split, drawn_batch
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.least_squares import best_rate, gradient_predictions, ridge_predictions

DIGITS = 7
"""Significant digits stored per error, as many as float32 has."""
RIDGES = [10.0**power for power in range(-6, 3)]
"""Ridges that `best_ridge` tries."""


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

    Pairs are (x_i, y_i), or each state with its successor; only pairs before the query are used. For
    y ~ W x + N(0, sigma^2) with entries of W ~ N(0, 1 / d), ridge regression with lambda = d sigma^2 is optimal: it is
    the posterior mean. The gradient step has one rate, which a linear layer without gates can express, or one for each
    number of pairs; rates are fitted on the valid sequences. For partially observed states, regression on one
    observation cannot be exact. Regression on as many observations as the state needs is then scored too, its ridge
    fitted on the valid sequences.
    """
    batch, other = (drawn_batch(task, rows, seed, split=split) for split in ("test", "valid"))
    queries = _queries(task)
    x, y = (batch[name][:, queries].double() for name in ("inputs", "targets"))
    other_x, other_y = (other[name][:, queries].double() for name in ("inputs", "targets"))
    other_steps = gradient_predictions(other_x, other_y, other_x, 1.0, lag=1)
    rate, rates = best_rate(other_steps, other_y), best_rate(other_steps, other_y, dim=(0, 2))
    found = {
        "ridge": ridge_predictions(x, y, x, task.size * task.noise**2, lag=1),
        "least squares": ridge_predictions(x, y, x, 0.0, lag=1),
        "gradient step, one rate": gradient_predictions(x, y, x, rate, lag=1),
        "gradient step, rate by pairs": gradient_predictions(x, y, x, rates.unsqueeze(-1), lag=1),
        "zero": torch.zeros_like(y),
    }
    if not isinstance(task, ContextRegression):
        found["last state"] = x
    if isinstance(task, LinearDynamics) and task.hidden is not None:
        count = math.ceil(task.hidden / task.size)
        ridge = best_ridge(last_states(other_x, count), other_y)
        seen = last_states(x, count)
        found[f"ridge on {count} states"] = ridge_predictions(seen, y, seen, ridge, lag=1)
    return {name: _scores(task, predictions, y) for name, predictions in found.items()}


def best_ridge(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the element of `RIDGES` whose predictions have the least squared error on these sequences."""
    return min(RIDGES, key=lambda ridge: float((ridge_predictions(x, y, x, ridge, lag=1) - y).square().sum()))


def last_states(x: torch.Tensor, count: int) -> torch.Tensor:
    """Concatenate the ``count`` latest observations at each position, newest first; the first count - 1 rows are zero.

    x [B, P, D]; returns [B, P, count D]. If D of a linear system's n state entries are observed, the next observation
    is a linear map of the last n / D ones (von Oswald et al. 2023, section 4.4), but not of fewer, so an incomplete
    row would spoil the regression.
    """
    if count > x.shape[1]:
        return x.new_zeros(*x.shape[:2], count * x.shape[2])
    windows = x.unfold(1, count, 1).flip(-1).transpose(-1, -2).flatten(2)
    return torch.nn.functional.pad(windows, (0, 0, count - 1, 0))


def _queries(task: VectorTask) -> list[int]:
    return list(task.query_positions() if isinstance(task, ContextRegression) else range(task.sequence_length))


def _scores(task: VectorTask, predictions: torch.Tensor, targets: torch.Tensor) -> SyntheticScores:
    outputs = task.output_size if isinstance(task, ContextRegression) else task.size
    errors = (predictions.double() - targets.double())[..., :outputs].square().sum(-1)
    numerator = [[float(f"{value:.{DIGITS}g}") for value in row] for row in errors.tolist()]
    denominator = [[float(outputs)] * errors.shape[1]] * len(errors)
    return SyntheticScores(
        [RowScores("error", "squared error per entry", "lower", numerator, denominator, list(range(errors.shape[1])))]
    )

"""Shared parts of experiments: sequences, losses of nets and of ridge regression, and curves of figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mesalm.data.stream import Batch
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.claims import Curve
from mesalm.lab.predictors import mean_loss, pairs, position_losses
from mesalm.lab.workbench import NetRecipe, Workbench
from mesalm.least_squares import ridge_predictions

Sizes = dict[str, Any]
RIDGE = 1e-3
"""The ridge of the least-squares controls, as in the authors' code."""
FIT_ROWS = 512
"""Default number of sequences for fits, which have few parameters, if the sizes have no ``fit_rows``."""


def dynamics(sizes: Sizes, **options: Any) -> LinearDynamics:
    """Return the linear dynamics for an experiment's sizes, partially observed if they have a ``hidden``."""
    return LinearDynamics(size=sizes["size"], hidden=sizes.get("hidden"), length=sizes["length"], **options)


def fit_and_test(bench: Workbench, task: VectorTask, sizes: Sizes) -> tuple[Batch, Batch]:
    """Return two batches: sequences to fit on, and others to test on."""
    return bench.batch(task, sizes.get("fit_rows", FIT_ROWS), step=1), bench.batch(task, sizes["test_rows"])


def net_losses(bench: Workbench, recipe: NetRecipe, batch: Batch) -> Tensor:
    """Return a net's loss at each position of a batch, [T] float64."""
    return position_losses(bench.net(recipe)(batch["inputs"]).predictions, batch["targets"])


def ridge_losses(batch: Batch) -> dict[str, Tensor]:
    """Return the losses of ridge regression at each position, with and without the newest pair, [T] float64 each."""
    names = {"ridge with all pairs": 0, "ridge without the newest pair": 1}
    keys, values, queries = pairs(batch["inputs"].double())
    return {
        name: position_losses(ridge_predictions(keys, values, queries, RIDGE, lag), batch["targets"])
        for name, lag in names.items()
    }


def zero_loss(batch: Batch) -> float:
    """Return the mean loss of predicting zero."""
    return mean_loss(batch["targets"].new_zeros(()), batch["targets"])


def curve(label: str, values: Tensor | Sequence[float], first: int = 1) -> Curve:
    """Return values by position, pair or layer as a curve whose first x is ``first``."""
    y = values.tolist() if isinstance(values, Tensor) else list(values)
    return Curve(label, [float(place) for place in range(first, first + len(y))], y)

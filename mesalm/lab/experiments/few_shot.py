"""Claims about regression from pairs by a net that was trained only on linear dynamics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.lab.claims import Findings
from mesalm.lab.experiments.frame import Sizes, curve, dynamics
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.predictors import pairs, position_losses
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.least_squares import ridge_predictions

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate ridges of the least-squares control, which has large errors near half the dimension at the smallest."""


def pairs_task(size: int, **options: Any) -> ContextRegression:
    """Return the paper's few-shot regression task: orthogonal maps, uniform inputs."""
    return ContextRegression(size=size, map="orthogonal", inputs="uniform", **options)


def tuned(bench: Workbench, sizes: Sizes, base: NetRecipe, task: ContextRegression) -> NetRecipe:
    """Return the recipe of a net whose learned vectors are trained on a task, with the base's weights frozen."""
    own = {**sizes, "steps": sizes["tuning_steps"], "learning_rate": sizes["tuning_rate"]}
    model = {**base.model, "learned_vectors": task.learned_vectors}
    return net_recipe(task, own, bench.seed, model, weight_decay=0.0, base=base)


def pair_losses(bench: Workbench, recipe: NetRecipe, task: ContextRegression, rows: int) -> Tensor:
    """Return the loss of predicting the y of each pair, [pairs]."""
    batch = bench.batch(task, rows)
    predictions = bench.net(recipe)(batch["inputs"], places=batch.get("places")).predictions
    return position_losses(predictions, batch["targets"])[list(task.query_positions())]


def least_squares_losses(bench: Workbench, task: ContextRegression, rows: int, lag: int) -> dict[float, Tensor]:
    """Return by ridge the losses of ridge regression on all neighbouring tokens, false pairs (y, x) included."""
    batch = bench.batch(task, rows)
    return {
        ridge: position_losses(ridge_predictions(*pairs(batch["inputs"].double()), ridge, lag), batch["targets"])[
            list(task.query_positions())
        ]
        for ridge in RIDGES
    }


def best_ridge(losses: dict[float, Tensor]) -> float:
    """Return the ridge with the lowest mean loss."""
    return min(losses, key=lambda ridge: float(losses[ridge].mean()))


def zero_answer_loss(bench: Workbench, task: ContextRegression, rows: int) -> float:
    """Return the mean loss of predicting zero for every y."""
    targets = bench.batch(task, rows)["targets"]
    return float(position_losses(torch.zeros_like(targets), targets)[list(task.query_positions())].mean())


def base_net(bench: Workbench, sizes: Sizes) -> NetRecipe:
    """Return the recipe of the softmax net trained only on linear dynamics."""
    return plain_net(bench, sizes, dynamics(sizes), "softmax", sizes["layers"])


def aided(bench: Workbench, sizes: Sizes, base: NetRecipe) -> dict[str, tuple[ContextRegression, NetRecipe]]:
    """Return task and net for each presentation of pairs: plain, with tuned separator, and with tuned prefix too."""
    size, length, prefix = sizes["size"], sizes["length"], sizes["prefix"]
    plain = pairs_task(size, pairs=length // 2)
    parted = pairs_task(size, pairs=length // 3, separator=True)
    prefixed = pairs_task(size, pairs=(length - prefix) // 3, separator=True, prefix=prefix)
    separator = tuned(bench, sizes, base, parted)
    return {
        "plain": (plain, base),
        "separator": (parted, separator),
        "separator and prefix": (prefixed, tuned(bench, sizes, separator, prefixed)),
    }


def few_shot(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 17: plain pairs, pairs with a tuned separator, and with a tuned prefix too."""
    return learning_from_pairs(bench, sizes, base_net(bench, sizes))


def learning_from_pairs(bench: Workbench, sizes: Sizes, base: NetRecipe) -> Findings:
    """Compare the predictions of a net trained on dynamics with least squares on pairs."""
    size, rows = sizes["size"], sizes["test_rows"]
    ways = aided(bench, sizes, base)
    tasks = {name: task for name, (task, _) in ways.items()}
    found = [pair_losses(bench, recipe, task, rows) for task, recipe in ways.values()]
    plain, separated, prefixed = found
    zero = zero_answer_loss(bench, tasks["plain"], rows)
    controls: dict[str, float] = {"loss of predicting zero": zero}
    curves = [curve(name, losses) for name, losses in zip(tasks, found, strict=True)]
    for lag, name in ((0, "all pairs"), (1, "without the newest pair")):
        by_ridge = least_squares_losses(bench, tasks["plain"], rows, lag)
        ridge = best_ridge(by_ridge)
        losses = by_ridge[ridge]
        curves.append(curve(f"least squares, {name}", losses))
        controls |= {
            f"least squares, highest within the dimension over predicting zero, {name}, ridge {each:g}": float(
                found[1:size].max() / zero
            )
            for each, found in by_ridge.items()
        }
        controls[f"best ridge, {name}"] = ridge
        controls[f"least squares, highest within the dimension over the first, {name}"] = float(
            losses[1:size].max() / losses[0]
        )
    shared = len(separated)
    return Findings(
        {
            "highest plain loss within the dimension over the first": float(plain[1:size].max() / plain[0]),
            "plain loss after four times the dimension over the first": float(plain[4 * size - 1] / plain[0]),
            "mean loss with the separator over plain": float(separated.mean() / plain[:shared].mean()),
            "loss with the prefix over the separator within the dimension": float(
                prefixed[:size].mean() / separated[:size].mean()
            ),
            "first plain loss over predicting zero": float(plain[0] / zero),
            "highest plain loss within the dimension over predicting zero": float(plain[1:size].max() / zero),
            "plain loss after four times the dimension over predicting zero": float(plain[4 * size - 1] / zero),
        },
        controls=controls,
        curves=curves,
        x_label="pair",
    )


def continual(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 18: plain pairs of one map, then of another."""
    first = sizes["first_pairs"]
    task = pairs_task(sizes["size"], pairs=first, second_pairs=sizes["second_pairs"])
    losses = pair_losses(bench, base_net(bench, sizes), task, sizes["test_rows"])
    control = least_squares_losses(bench, task, sizes["test_rows"], 0)
    ridge, zero = best_ridge(control), zero_answer_loss(bench, task, sizes["test_rows"])
    return Findings(
        {
            "loss at the switch over the loss before": float(losses[first] / losses[first - 1]),
            "loss after four times the dimension over the loss at the switch": float(
                losses[first + 4 * sizes["size"]] / losses[first]
            ),
            "loss before the switch over predicting zero": float(losses[first - 1] / zero),
            "loss after four times the dimension over predicting zero": float(losses[first + 4 * sizes["size"]] / zero),
        },
        controls={"best ridge of the control": ridge, "loss of predicting zero": zero},
        curves=[curve("plain", losses), curve("least squares, all pairs", control[ridge])],
        x_label="pair",
    )


def few_shot_hybrid(bench: Workbench, sizes: Sizes) -> Findings:
    """Measure the quantities of claim 17 for one softmax and one mesa layer instead of the deep softmax net."""
    return learning_from_pairs(bench, sizes, plain_net(bench, sizes, dynamics(sizes), ["softmax", "mesa"], 2))


def continual_aided(bench: Workbench, sizes: Sizes) -> Findings:
    """Test the nets of claim 17, plain, with separator and with prefix too, on two tasks in one sequence.

    All three see as many pairs as fit into the training length in the longest of the three forms, a third of them from
    the first task: with separators, the pairs of claim 18 would not fit.
    """
    pairs = (sizes["length"] - sizes["prefix"]) // 3
    first = pairs // 3
    values, curves = {}, []
    for name, (task, recipe) in aided(bench, sizes, base_net(bench, sizes)).items():
        both = task.model_copy(update={"pairs": first, "second_pairs": pairs - first})
        losses = pair_losses(bench, recipe, both, sizes["test_rows"])
        values[f"loss at the switch over the loss before, {name}"] = float(losses[first] / losses[first - 1])
        values[f"last loss over the loss at the switch, {name}"] = float(losses[-1] / losses[first])
        values[f"mean loss of the second task, {name}"] = float(losses[first:].mean())
        curves.append(curve(name, losses))
    return Findings(
        values,
        curves=curves,
        x_label="pair",
        notes=[f"{first} pairs of the first task, then {pairs - first} of the second, in all three forms"],
    )

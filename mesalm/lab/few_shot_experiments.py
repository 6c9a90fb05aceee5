"""Claims about regression from pairs by a net that was trained on linear dynamics alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.least_squares import position_losses, ridge_predictions
from mesalm.lab.softmax_experiments import plain_net
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe

Sizes = dict[str, Any]
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges that the least-squares control is tuned over: at the least, it is far off near half the dimension."""


def pairs_task(size: int, **options: Any) -> ContextRegression:
    """Return the paper's few-shot regression: orthogonal maps, uniform inputs."""
    return ContextRegression(size=size, map="orthogonal", inputs="uniform", **options)


def tuned(bench: Workbench, sizes: Sizes, base: NetRecipe, task: ContextRegression) -> NetRecipe:
    """Return the recipe of a net whose learned vectors are trained on a task, its base's weights staying."""
    own = {**sizes, "steps": sizes["tuning_steps"], "learning_rate": sizes["tuning_rate"]}
    model = {**base.model, "learned_vectors": task.learned_vectors}
    return net_recipe(task, own, bench.seed, model, weight_decay=0.0, base=base)


def pair_losses(bench: Workbench, recipe: NetRecipe, task: ContextRegression, rows: int) -> Tensor:
    """Return the loss of the answer to each pair's question, [pairs]."""
    batch = bench.batch(task, rows)
    predictions = bench.net(recipe)(batch["inputs"], places=batch.get("places")).predictions
    return position_losses(predictions, batch["targets"])[list(task.query_positions())]


def least_squares_losses(bench: Workbench, task: ContextRegression, rows: int, lag: int) -> tuple[Tensor, float]:
    """Return the losses of ridge regression on all neighbouring tokens, false pairs too, with the best ridge."""
    batch = bench.batch(task, rows)
    losses = {
        ridge: position_losses(ridge_predictions(batch["inputs"].double(), ridge, lag), batch["targets"])[
            list(task.query_positions())
        ]
        for ridge in RIDGES
    }
    best = min(losses, key=lambda ridge: float(losses[ridge].mean()))
    return losses[best], best


def by_pair(label: str, losses: Tensor) -> Curve:
    """Return losses by the number of the pair as a line."""
    return Curve(label, [float(pair + 1) for pair in range(len(losses))], losses.tolist())


def base_net(bench: Workbench, sizes: Sizes) -> NetRecipe:
    """Return the recipe of the softmax net that has seen linear dynamics alone."""
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    return plain_net(bench, sizes, task, "softmax", sizes["layers"])


def few_shot(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 17: pairs as they are, with a tuned separator, and with a tuned prefix before them."""
    size, length, prefix, rows = sizes["size"], sizes["length"], sizes["prefix"], sizes["test_rows"]
    base = base_net(bench, sizes)
    tasks = {
        "plain": pairs_task(size, pairs=length // 2),
        "separator": pairs_task(size, pairs=length // 3, separator=True),
        "separator and prefix": pairs_task(size, pairs=(length - prefix) // 3, separator=True, prefix=prefix),
    }
    separator = tuned(bench, sizes, base, tasks["separator"])
    recipes = [base, separator, tuned(bench, sizes, separator, tasks["separator and prefix"])]
    found = [pair_losses(bench, recipe, task, rows) for recipe, task in zip(recipes, tasks.values(), strict=True)]
    plain, separated, prefixed = found
    controls, curves = {}, [by_pair(name, losses) for name, losses in zip(tasks, found, strict=True)]
    for lag, name in ((0, "all pairs"), (1, "without the newest pair")):
        losses, ridge = least_squares_losses(bench, tasks["plain"], rows, lag)
        curves.append(by_pair(f"least squares, {name}", losses))
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
        },
        controls=controls,
        curves=curves,
        x_label="pair",
    )


def continual(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 18: pairs of one map, then of another, given as they are."""
    first = sizes["first_pairs"]
    task = pairs_task(sizes["size"], pairs=first, second_pairs=sizes["second_pairs"])
    losses = pair_losses(bench, base_net(bench, sizes), task, sizes["test_rows"])
    control, ridge = least_squares_losses(bench, task, sizes["test_rows"], 0)
    return Findings(
        {
            "loss at the switch over the loss before": float(losses[first] / losses[first - 1]),
            "loss after four times the dimension over the loss at the switch": float(
                losses[first + 4 * sizes["size"]] / losses[first]
            ),
        },
        controls={"best ridge of the control": ridge},
        curves=[by_pair("plain", losses), by_pair("least squares, all pairs", control)],
        x_label="pair",
    )

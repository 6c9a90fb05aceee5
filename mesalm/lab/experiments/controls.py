"""Nets for comparison in experiments: with shuffled weights, or trained at the best of several learning rates."""

from __future__ import annotations

import copy

import torch

from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.claims import Findings
from mesalm.lab.experiments.frame import Sizes, curve, dynamics, net_losses
from mesalm.lab.experiments.linear import constructed_net
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.workbench import NetRecipe, Workbench
from mesalm.regressor.regressor_mesa import MesaRegressor

CHOOSING_ROWS = 2048
"""Sequences on which learning rates are compared; they are not used for scores."""


def shuffled(net: MesaRegressor, seed: int) -> MesaRegressor:
    """Return a copy of a net with the entries of each weight shuffled: same scale, nothing learned."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return other


def best_of_rates(
    bench: Workbench, sizes: Sizes, task: VectorTask, mixers: str | list[str], layers: int, rates: list[float]
) -> NetRecipe:
    """Return the recipe of the plain net whose learning rate gives the lowest loss on separate sequences."""
    batch = bench.batch(task, CHOOSING_ROWS, step=2)
    recipes = [plain_net(bench, {**sizes, "learning_rate": rate}, task, mixers, layers) for rate in rates]
    return min(recipes, key=lambda each: float(net_losses(bench, each, batch).mean()))


def tuned_hybrid(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 16, version 2: both nets at their best rates, and a net of one fewer layers, all linear."""
    task, layers, rates = dynamics(sizes), sizes["layers"], sizes["learning_rates"]
    own = {**sizes, "steps": sizes["linear_steps"], "learning_rate": sizes["linear_rate"]}
    recipes = {
        "softmax then mesa": best_of_rates(bench, sizes, task, ["softmax", "mesa"], 2, rates),
        f"softmax, {layers} layers": best_of_rates(bench, sizes, task, "softmax", layers, rates),
        f"linear, {layers - 1} layers": constructed_net(bench, own, "linear", layers - 1),
    }
    batch = bench.batch(task, sizes["test_rows"])
    losses = {name: net_losses(bench, recipe, batch) for name, recipe in recipes.items()}
    hybrid, softmax, linear = (float(each.mean()) for each in losses.values())
    return Findings(
        {
            "loss of the hybrid relative to softmax": hybrid / softmax,
            "loss of softmax relative to one linear layer fewer": softmax / linear,
        },
        controls={
            **{f"loss of {name}": float(each.mean()) for name, each in losses.items()},
            **{f"rate of {name}": recipe.optim.learning_rate for name, recipe in recipes.items()},
        },
        curves=[curve(name, each) for name, each in losses.items()],
    )

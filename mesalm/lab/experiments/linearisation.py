"""The claim about replacing single softmax layers of a trained net by linear ones."""

from __future__ import annotations

import statistics
from typing import Any

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.predictors import mean_loss
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe

Sizes = dict[str, Any]


def linearised(bench: Workbench, sizes: Sizes, base: NetRecipe, layer: int) -> NetRecipe:
    """Return the recipe of a net with one layer linear, trained to give what the base's layer gives.

    It starts from the softmax layer's own weights.
    """
    net = bench.net(base)
    mixers = list(net.config.layer_mixers)
    mixers[layer] = "linear"
    own = {**sizes, "steps": sizes["linear_steps"]}
    model = {**base.model, "mixers": mixers}
    return net_recipe(base.task, own, bench.seed, model, weight_decay=0.0, cosine=True, base=base, imitates=layer)


def loss_ratios(bench: Workbench, sizes: Sizes, base: NetRecipe) -> list[float]:
    """Return for each layer the net's loss with that layer alone linear, over the loss of the net as it is."""
    batch = bench.batch(base.task, sizes["test_rows"])

    def loss(recipe: NetRecipe) -> float:
        return mean_loss(bench.net(recipe)(batch["inputs"]).predictions, batch["targets"])

    layers = range(bench.net(base).config.num_hidden_layers)
    return [loss(linearised(bench, sizes, base, layer)) / loss(base) for layer in layers]


def linearisation(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 13: nets of softmax layers, four positions per entry of the state; ratios are means over the sizes."""
    ratios = {}
    for size in sizes["sizes"]:
        task = LinearDynamics(size=size, length=4 * size)
        ratios[size] = loss_ratios(bench, sizes, plain_net(bench, sizes, task, "softmax", sizes["layers"]))
    later = {size: statistics.fmean(found[1:]) for size, found in ratios.items()}
    small, large = min(later), max(later)
    return Findings(
        {
            "loss ratio of layer 1": statistics.fmean(found[0] for found in ratios.values()),
            "mean loss ratio of later layers": statistics.fmean(later.values()),
            f"mean loss ratio of later layers at size {large} over size {small}": later[large] / later[small],
        },
        controls={
            f"loss ratio of layer {layer + 1} at size {size}": ratio
            for size, found in ratios.items()
            for layer, ratio in enumerate(found)
        },
        curves=[
            Curve(f"size {size}", [float(layer + 1) for layer in range(len(found))], found)
            for size, found in ratios.items()
        ],
        x_label="layer that is linear",
        y_label="loss over the net's own",
    )

"""The claim about replacing single softmax layers of a trained net by linear layers."""

from __future__ import annotations

import statistics
from typing import Any

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.frame import Sizes, curve, dynamics, net_losses, zero_loss
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe


def linearised(bench: Workbench, sizes: Sizes, base: NetRecipe, layer: int) -> NetRecipe:
    """Return the recipe of a net with one linear layer, trained to imitate the base's softmax layer.

    The layer starts from the softmax layer's weights. If the sizes have a ``linear_rate``, it starts from random
    weights and trains at that constant rate.
    """
    net = bench.net(base)
    mixers = list(net.config.layer_mixers)
    mixers[layer] = "linear"
    fresh = "linear_rate" in sizes
    own = {**sizes, "steps": sizes["linear_steps"], "warmup": 0}
    own["learning_rate"] = sizes["linear_rate" if fresh else "learning_rate"]
    model = {**base.model, "mixers": mixers}
    options: dict[str, Any] = {"weight_decay": 0.0, "cosine": not fresh, "imitates": layer, "fresh": fresh}
    return net_recipe(base.task, own, bench.seed, model, base=base, **options)


def loss_ratios(bench: Workbench, sizes: Sizes, base: NetRecipe) -> list[float]:
    """Return for each layer the net's loss with only that layer made linear, divided by the original loss."""
    batch = bench.batch(base.task, sizes["test_rows"])
    own = float(net_losses(bench, base, batch).mean())
    recipes = [linearised(bench, sizes, base, layer) for layer in range(bench.net(base).config.num_hidden_layers)]
    return [float(net_losses(bench, recipe, batch).mean()) / own for recipe in recipes]


def linearisation(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 13: nets of softmax layers, four positions per entry of the state; ratios are means over the sizes."""
    ratios, bases, zeros = {}, {}, {}
    for size in sizes["sizes"]:
        task = dynamics({"size": size, "length": 4 * size})
        base = plain_net(bench, sizes, task, "softmax", sizes["layers"])
        ratios[size] = loss_ratios(bench, sizes, base)
        batch = bench.batch(task, sizes["test_rows"])
        bases[size] = float(net_losses(bench, base, batch).mean())
        zeros[size] = zero_loss(batch)
    later = {size: statistics.fmean(found[1:]) for size, found in ratios.items()}
    small, large = min(later), max(later)
    return Findings(
        {
            "loss ratio of layer 1": statistics.fmean(found[0] for found in ratios.values()),
            "mean loss ratio of later layers": statistics.fmean(later.values()),
            f"mean loss ratio of later layers at size {large} over size {small}": later[large] / later[small],
            "largest loss of a net over predicting zero": max(bases[size] / zeros[size] for size in bases),
        },
        controls={
            **{f"loss of the net at size {size}": loss for size, loss in bases.items()},
            **{
                f"loss ratio of layer {layer + 1} at size {size}": ratio
                for size, found in ratios.items()
                for layer, ratio in enumerate(found)
            },
        },
        curves=[curve(f"size {size}", found) for size, found in ratios.items()],
        x_label="layer that is linear",
        y_label="loss over the net's own",
    )

"""Claims about nets with softmax layers on plain tokens."""

from __future__ import annotations

from typing import Any

import torch

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.nonlinear_dynamics import NonlinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.claims import Findings
from mesalm.lab.experiments.linear import RIDGE, curve
from mesalm.lab.linear_decoders import decode
from mesalm.lab.predictors import mean_loss, pairs, position_losses
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.least_squares import ridge_predictions

Sizes = dict[str, Any]


def plain_net(
    bench: Workbench, sizes: Sizes, task: VectorTask, mixers: str | list[str], layers: int, *, mlps: bool = False
) -> NetRecipe:
    """Return the recipe of a net on plain tokens: no norms, sinusoidal positions in the first layer, MLPs if asked.

    Without a ``width`` among the sizes it is four times the input's; without ``heads`` there are 4; with a ``warmup``,
    in steps, the rate is held behind it, else it is a cosine.
    """
    width = sizes.get("width", 4 * task.input_size)
    hybrid = isinstance(mixers, list)
    model = {
        "hidden_size": width,
        "head_dim": max(2 * (width // 4), 2),
        "num_hidden_layers": layers,
        "mixers": mixers,
        "block_mlps": mlps,
        "residual_clip": (15.0 if mlps else 1.0) if hybrid else None,
    }
    if "heads" in sizes:
        model["num_attention_heads"] = sizes["heads"]
    return net_recipe(task, sizes, bench.seed, model, cosine="warmup" not in sizes)


def shallow_hybrid(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 16: softmax then mesa against a deeper net of softmax layers."""
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    batch = bench.batch(task, sizes["test_rows"])
    inputs, targets = batch["inputs"], batch["targets"]
    forms: list[tuple[str, Any, int]] = [
        ("softmax then mesa", ["softmax", "mesa"], 2),
        (f"softmax, {sizes['layers']} layers", "softmax", sizes["layers"]),
    ]
    losses = {
        name: position_losses(bench.net(plain_net(bench, sizes, task, mixers, layers))(inputs).predictions, targets)
        for name, mixers, layers in forms
    }
    hybrid, softmax = (float(each.mean()) for each in losses.values())
    fresh, late = (position_losses(ridge_predictions(*pairs(inputs.double()), RIDGE, lag), targets) for lag in (0, 1))
    return Findings(
        {"loss of the hybrid relative to softmax": hybrid / softmax},
        controls={
            "loss of the hybrid": hybrid,
            "loss of softmax": softmax,
            "ridge with all pairs": float(fresh.mean()),
            "ridge without the newest pair": float(late.mean()),
            "loss of predicting zero": mean_loss(torch.zeros_like(targets), targets),
        },
        curves=[*(curve(name, each) for name, each in losses.items()), curve("ridge with all pairs", fresh)],
    )


def nonlinear(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 20: the features decoded after the first block of a softmax net with MLPs, and the hybrid beside it."""
    task = NonlinearDynamics(size=sizes["size"], width=sizes["features_width"], length=sizes["length"])
    deep = plain_net(bench, sizes, task, "softmax", sizes["layers"], mlps=True)
    hybrid = plain_net(bench, sizes, task, ["softmax", "mesa"], 2, mlps=True)
    fit, test = (bench.batch(task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    features = [task.features(batch["inputs"][:, -1]) for batch in (fit, test)]
    raw = [task.raw_features(batch["inputs"][:, -1]) for batch in (fit, test)]
    net = bench.net(deep)
    streams = [net(batch["inputs"], output_hidden_states=True).hidden_states for batch in (fit, test)]
    explained = [decode((a[:, -1], features[0]), (b[:, -1], features[1])).r2 for a, b in zip(*streams, strict=True)]
    first, second = (decode((a[:, -1], raw[0]), (b[:, -1], raw[1])).r2 for a, b in list(zip(*streams, strict=True))[:2])
    inputs, targets = test["inputs"], test["targets"]
    losses = [position_losses(bench.net(recipe)(inputs).predictions, targets) for recipe in (deep, hybrid)]
    softmax, ours = (float(each.mean()) for each in losses)
    return Findings(
        {
            "R2 of the features after the first MLP": explained[1],
            "R2 of the unnormalised features after the first MLP": second,
            "share of what the input leaves that the first MLP explains": (second - first) / (1 - first),
            "loss of the hybrid relative to softmax": ours / softmax,
        },
        controls={
            "R2 of the features in the input": explained[0],
            "R2 of the unnormalised features in the input": first,
            "loss of softmax": softmax,
            "loss of the hybrid": ours,
            "ridge on the states, all pairs": mean_loss(ridge_predictions(*pairs(inputs.double()), RIDGE), targets),
            "loss of predicting zero": mean_loss(torch.zeros_like(targets), targets),
        },
        curves=[curve(f"softmax, {sizes['layers']} layers", losses[0]), curve("softmax then mesa", losses[1])],
        notes=["the MLPs are gated GELU, and softmax layers do not scale queries and keys to unit length"],
    )

"""Claims about nets with softmax layers on plain tokens."""

from __future__ import annotations

import math
from typing import Any

import torch

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.nonlinear_dynamics import NonlinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.experiments.linear import RIDGE, curve
from mesalm.lab.linear_decoders import decode
from mesalm.lab.predictors import mean_loss, pairs, position_losses
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.least_squares import ridge_predictions

Sizes = dict[str, Any]
LAGS = 6
"""Lags of the figures of what the first layer holds."""


def plain_net(
    bench: Workbench, sizes: Sizes, task: VectorTask, mixers: str | list[str], layers: int, *, mlps: bool = False
) -> NetRecipe:
    """Return the recipe of a net on plain tokens: no norms, sinusoidal positions in the first layer, MLPs if asked.

    Without a ``width`` among the sizes it is four times the input's; without ``heads`` there are 4.
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
    return net_recipe(task, sizes, bench.seed, model, cosine=True)


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


def copied_lags(bench: Workbench, sizes: Sizes, task: VectorTask) -> tuple[list[float], list[float]]:
    """Return R2 of decoding s_{T - lag} from the first layer's output at the last position, and its sensitivity.

    The sensitivity is the mean over outputs of the norm of the gradient by s_{T - lag}, averaged over 64 sequences.
    """
    net = bench.net(plain_net(bench, sizes, task, list(sizes["mixers"]), len(sizes["mixers"])))
    fit, test = (bench.batch(task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    states = [net(batch["inputs"], output_hidden_states=True).hidden_states[1][:, -1] for batch in (fit, test)]
    explained = [
        decode((states[0], fit["inputs"][:, -1 - lag]), (states[1], test["inputs"][:, -1 - lag])).r2
        for lag in range(LAGS)
    ]
    inputs = test["inputs"][:64].clone().requires_grad_()
    output = net(inputs, output_hidden_states=True).hidden_states[1][:, -1]
    norms = []
    for entry in output.sum(dim=0):
        (gradient,) = torch.autograd.grad(entry, inputs, retain_graph=True)
        norms.append(gradient.norm(dim=-1).mean(dim=0))
    sensitivity = torch.stack(norms).mean(dim=0).flip(0)[:LAGS].tolist()
    return explained, sensitivity


def copy_layer(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 11: the first layer holds this token and the one before, and little else."""
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    explained, sensitivity = copied_lags(bench, sizes, task)
    lags = [float(lag) for lag in range(LAGS)]
    return Findings(
        {
            "least R2 of lags 0 and 1": min(explained[:2]),
            "R2 of lag 3": explained[3],
            "sensitivity of lag 1 over lag 4": sensitivity[1] / sensitivity[4],
        },
        curves=[Curve("R2 of decoding", lags, explained), Curve("sensitivity", lags, sensitivity)],
        x_label="lag",
        y_label="R2, norm of the gradient",
    )


def longer_binding(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 12: with a state of n_h seen through n_s numbers, ceil(n_h / n_s) tokens are held."""
    task = LinearDynamics(size=sizes["size"], hidden=sizes["hidden"], length=sizes["length"])
    explained, sensitivity = copied_lags(bench, sizes, task)
    needed = math.ceil(sizes["hidden"] / sizes["size"])
    lags = [float(lag) for lag in range(LAGS)]
    return Findings(
        {"least R2 of the lags needed": min(explained[:needed])},
        controls={"lags needed": needed},
        curves=[Curve("R2 of decoding", lags, explained), Curve("sensitivity", lags, sensitivity)],
        x_label="lag",
        y_label="R2, norm of the gradient",
    )


def nonlinear(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 20: the features decoded after the first block of a softmax net with MLPs, and the hybrid beside it."""
    task = NonlinearDynamics(size=sizes["size"], width=sizes["features_width"], length=sizes["length"])
    deep = plain_net(bench, sizes, task, "softmax", sizes["layers"], mlps=True)
    hybrid = plain_net(bench, sizes, task, ["softmax", "mesa"], 2, mlps=True)
    fit, test = (bench.batch(task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    features = [task.features(batch["inputs"][:, -1]) for batch in (fit, test)]
    net = bench.net(deep)
    streams = [net(batch["inputs"], output_hidden_states=True).hidden_states for batch in (fit, test)]
    explained = [decode((a[:, -1], features[0]), (b[:, -1], features[1])).r2 for a, b in zip(*streams, strict=True)]
    inputs, targets = test["inputs"], test["targets"]
    losses = [position_losses(bench.net(recipe)(inputs).predictions, targets) for recipe in (deep, hybrid)]
    softmax, ours = (float(each.mean()) for each in losses)
    return Findings(
        {
            "R2 of the features after the first MLP": explained[1],
            "loss of the hybrid relative to softmax": ours / softmax,
        },
        controls={
            "R2 of the features in the input": explained[0],
            "loss of softmax": softmax,
            "loss of the hybrid": ours,
            "ridge on the states, all pairs": mean_loss(ridge_predictions(*pairs(inputs.double()), RIDGE), targets),
            "loss of predicting zero": mean_loss(torch.zeros_like(targets), targets),
        },
        curves=[curve(f"softmax, {sizes['layers']} layers", losses[0]), curve("softmax then mesa", losses[1])],
        notes=["the MLPs are gated GELU, and softmax layers do not scale queries and keys to unit length"],
    )

"""Claims about nets of linear and mesa layers on constructed tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.compressed import averaged, compressed, counts, diagonal_mass, learned_rate, with_products
from mesalm.lab.constructions import products_of
from mesalm.lab.linear_decoders import decode
from mesalm.lab.preconditioners import learned_coefficients, momentum_inverse, momentum_predictions
from mesalm.lab.predictors import best_step, mean_loss, pairs, position_losses, previous
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.least_squares import best_rate, gradient_predictions, ridge_predictions, running_gram
from mesalm.regressor.configuration_regressor import SLOTS

Sizes = dict[str, Any]
RIDGE = 1e-3
"""The ridge of the least-squares controls, the authors' choice."""


def constructed_net(
    bench: Workbench, sizes: Sizes, mixer: str, layers: int, *, transition: str = "orthogonal"
) -> NetRecipe:
    """Return the recipe of a net on constructed tokens; one linear layer has 2 heads and no second copy of s_t."""
    size = sizes["size"]
    alone = mixer == "linear" and layers == 1
    model = {
        "hidden_size": SLOTS * size,
        "head_dim": 2 * size,
        "num_hidden_layers": layers,
        "num_attention_heads": 2 if alone else 4,
        "mixers": mixer,
        "tokens": "constructed",
        "positions": False,
        "copy_slot": not alone,
        "initializer_range": 2e-4,
        "residual_clip": 4.0 if mixer == "linear" else None,
    }
    task = LinearDynamics(size=size, length=sizes["length"], transition=transition)  # type: ignore[arg-type]
    return net_recipe(task, sizes, bench.seed, model)


def curve(label: str, losses: torch.Tensor) -> Curve:
    """Return the losses by position as a line."""
    return Curve(label, [float(t + 1) for t in range(len(losses))], losses.tolist())


def late_upturn(losses: torch.Tensor) -> float:
    """Return by how much the last loss is above the least, as a share of the least."""
    return float(losses[-1] / losses.min() - 1)


def one_layer(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 5: a trained linear layer against the best gradient step."""
    recipe = constructed_net(bench, sizes, "linear", 1)
    net, batch = bench.net(recipe), bench.batch(recipe.task, sizes["test_rows"])
    inputs, targets = batch["inputs"], batch["targets"]
    unit = gradient_predictions(*pairs(inputs), 1.0)
    rate = float(best_rate(unit, targets))
    ours = position_losses(net(inputs).predictions, targets)
    step = position_losses(rate * unit, targets)
    products = products_of(net)
    names = ("query and key", "output and value")
    blocks = {
        f"head {head}, {name}": matrix.tolist()
        for head, pair in enumerate(products[0])
        for name, matrix in zip(names, pair, strict=True)
    }
    return Findings(
        {
            "loss relative to the best gradient step": float(ours.mean() / step.mean()),
            "late upturn of the net": late_upturn(ours),
            "late upturn of the gradient step": late_upturn(step),
            "mass on block diagonals": diagonal_mass(products),
            "learned rate relative to the best": learned_rate(net) / rate,
        },
        controls={
            "loss of the net": float(ours.mean()),
            "loss of the gradient step": float(step.mean()),
            "best rate": rate,
            "loss of the gradient step without the newest pair": mean_loss(best_step(inputs, targets, lag=1), targets),
            "loss of predicting zero": mean_loss(torch.zeros_like(targets), targets),
        },
        curves=[curve("trained linear layer", ours), curve("best gradient step", step)],
        blocks=blocks,
    )


def interpolation(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 6: the compressed algorithm, and the average of it with the net, at stages of the training."""
    recipe = constructed_net(bench, sizes, "linear", 1)
    net, batch = bench.net(recipe), bench.batch(recipe.task, sizes["test_rows"])
    inputs, targets = batch["inputs"], batch["targets"]
    small = compressed(products_of(net))
    losses: dict[str, list[float]] = {"trained net": [], "average of both": []}
    steps = []
    for step, stage in bench.stages(recipe):
        steps.append(float(step))
        mixed = with_products(net, averaged(products_of(stage), small))
        losses["trained net"].append(mean_loss(stage(inputs).predictions, targets))
        losses["average of both"].append(mean_loss(mixed(inputs).predictions, targets))
    alone = mean_loss(with_products(net, small)(inputs).predictions, targets)
    kept, trained = counts(net)
    return Findings(
        {
            "loss of the compressed relative to the net": alone / losses["trained net"][-1],
            "loss of the interpolated relative to the net": losses["average of both"][-1] / losses["trained net"][-1],
        },
        controls={
            "numbers per head, compressed": kept,
            "numbers per head, trained": trained,
            "loss of the net": losses["trained net"][-1],
        },
        curves=[
            *(Curve(label, steps, values) for label, values in losses.items()),
            Curve("compressed", steps, [alone] * len(steps)),
        ],
        x_label="training step",
    )


def depth(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 7: one, two and four linear layers, and one mesa layer, beside ridge regression."""
    forms = [("linear", 1), ("linear", 2), ("linear", 4), ("mesa", 1)]
    curves, means = [], []
    for place, (mixer, layers) in enumerate(forms):
        own = {**sizes, "steps": sizes["steps"][place], "learning_rate": sizes["learning_rate"][place]}
        recipe = constructed_net(bench, own, mixer, layers)
        batch = bench.batch(recipe.task, sizes["test_rows"])
        losses = position_losses(bench.net(recipe)(batch["inputs"]).predictions, batch["targets"])
        curves.append(curve(f"{mixer}, {layers} layer{'s' * (layers > 1)}", losses))
        means.append(float(losses.mean()))
    inputs, targets = batch["inputs"].double(), batch["targets"]
    fresh, late = (position_losses(ridge_predictions(*pairs(inputs), RIDGE, lag), targets) for lag in (0, 1))
    one, two, four, mesa = means
    return Findings(
        {
            "loss of two layers relative to one": two / one,
            "loss of four layers relative to two": four / two,
            "loss of one mesa layer relative to four": mesa / four,
            "loss of one mesa layer relative to ridge": mesa / float(fresh.mean()),
        },
        controls={
            **dict(zip((line.label for line in curves), means, strict=True)),
            "ridge with all pairs": float(fresh.mean()),
            "ridge without the newest pair": float(late.mean()),
        },
        curves=[*curves, curve("ridge with all pairs", fresh), curve("ridge without the newest pair", late)],
    )


def chebyshev(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 8: proposition 2 with learned coefficients beside a net of as many layers; the nearer lag counts."""
    layers = sizes["layers"]
    recipe = constructed_net(bench, sizes, "linear", layers)
    batch = bench.batch(recipe.task, sizes["test_rows"])
    inputs, targets = batch["inputs"].double(), batch["targets"].double()
    fit = {name: tensor.double() for name, tensor in bench.batch(recipe.task, 512, step=1).items()}
    net = position_losses(bench.net(recipe)(batch["inputs"]).predictions, targets)
    curves, controls, gaps = [curve(f"linear, {layers} layers", net)], {"loss of the net": float(net.mean())}, []
    for lag, name in ((0, "all pairs"), (1, "without the newest pair")):
        found = learned_coefficients(fit["inputs"], fit["targets"], layers, sizes["ridge"], lag)
        losses = position_losses(momentum_predictions(inputs, found, sizes["ridge"], lag), targets)
        curves.append(curve(f"proposition 2, {name}", losses))
        controls[f"loss of proposition 2, {name}"] = float(losses.mean())
        gaps.append(abs(float(losses.mean() / net.mean()) - 1))
    return Findings({"distance of losses": min(gaps)}, controls=controls, curves=curves)


def target_probe(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 9: the next token decoded from the residual stream at the last position, layer by layer."""
    recipe = constructed_net(bench, sizes, "linear", sizes["layers"])
    net = bench.net(recipe)
    fit, test = (bench.batch(recipe.task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    streams = [net(batch["inputs"], output_hidden_states=True).hidden_states for batch in (fit, test)]
    curves, last = [], []
    for position in sorted({sizes["length"] // 4, sizes["length"] // 2, sizes["length"]}):
        errors = [
            decode(
                (a[:, position - 1], fit["targets"][:, position - 1]),
                (b[:, position - 1], test["targets"][:, position - 1]),
            ).error
            for a, b in zip(*streams, strict=True)
        ]
        curves.append(Curve(f"position {position}", [float(layer) for layer in range(len(errors))], errors))
        last = errors
    return Findings(
        {
            "largest ratio of successive errors": max(b / a for a, b in pairwise(last)),
            "last error relative to the input's": last[-1] / last[0],
        },
        curves=curves,
        x_label="layer",
        y_label="error of the decoder, fresh sequences",
        logarithmic=True,
    )


def preconditioning_probe(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 10: the preconditioned query decoded layer by layer, and the control: the next token from it alone.

    The query is preconditioned by six steps with learned coefficients, as in the paper; sequences where its norm is
    two standard deviations above the mean are left out.
    """
    recipe = constructed_net(bench, sizes, "linear", sizes["layers"])
    net, at, ridge = bench.net(recipe), sizes["position"] - 1, sizes["ridge"]
    fit, test = (bench.batch(recipe.task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    found = learned_coefficients(fit["inputs"][:512].double(), fit["targets"][:512].double(), 6, ridge, 0)
    parts = []
    for batch in (fit, test):
        states = batch["inputs"].double()
        eye = torch.eye(sizes["size"], dtype=torch.float64, device=states.device)
        gram = running_gram(previous(states))[:, at] + ridge * eye
        query = (momentum_inverse(gram, found) @ states[:, at].unsqueeze(-1)).squeeze(-1)
        norm = query.norm(dim=-1)
        kept = norm < norm.mean() + 2 * norm.std()
        stream = net(batch["inputs"], output_hidden_states=True).hidden_states
        parts.append((query[kept], batch["targets"][kept, at], [state[kept, at] for state in stream]))
    (fit_query, fit_next, fit_stream), (test_query, test_next, test_stream) = parts
    errors = [decode((a, fit_query), (b, test_query)).error for a, b in zip(fit_stream, test_stream, strict=True)]
    control = decode((fit_query, fit_next), (test_query, test_next))
    return Findings(
        {
            "least error relative to the input's": min(errors[1:]) / errors[0],
            "error of the control relative to the variance": control.error / control.variance,
        },
        curves=[Curve(f"position {at + 1}", [float(layer) for layer in range(len(errors))], errors)],
        x_label="layer",
        y_label="error of the decoder, fresh sequences",
    )


def fixed_teacher(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 15: a linear layer trained on one map for all sequences."""
    recipe = constructed_net(bench, sizes, "linear", 1, transition="teacher")
    batch = bench.batch(recipe.task, sizes["test_rows"])
    inputs, targets = batch["inputs"], batch["targets"]
    ours = position_losses(bench.net(recipe)(inputs).predictions, targets)
    step = position_losses(best_step(inputs, targets), targets)
    return Findings(
        {"loss relative to the best gradient step": float(ours.mean() / step.mean())},
        controls={"loss of the net": float(ours.mean()), "loss of the gradient step": float(step.mean())},
        curves=[curve("trained linear layer", ours), curve("best gradient step", step)],
    )

"""Claims about nets of linear and mesa layers on constructed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mesalm.lab.claims import Curve, Findings
from mesalm.lab.compressed import averaged, compressed, counts, diagonal_mass, learned_rate, with_products
from mesalm.lab.constructions import products_of
from mesalm.lab.experiments.frame import (
    RIDGE,
    Sizes,
    curve,
    dynamics,
    fit_and_test,
    net_losses,
    ridge_losses,
    zero_loss,
)
from mesalm.lab.preconditioners import learned_coefficients, momentum_predictions
from mesalm.lab.predictors import best_step, mean_loss, pairs, position_losses
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.least_squares import best_rate, gradient_predictions, ridge_predictions
from mesalm.regressor.configuration_regressor import SLOTS
from mesalm.wording import plural


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
    return net_recipe(dynamics(sizes, transition=transition), sizes, bench.seed, model)


def late_upturn(losses: Tensor) -> float:
    """Return how far the last loss exceeds the smallest, relative to the smallest; noise alone makes it positive."""
    return float(losses[-1] / losses.min() - 1)


def one_layer(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 5: a trained linear layer compared with the best gradient step."""
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
            "loss of predicting zero": zero_loss(batch),
        },
        curves=[curve("trained linear layer", ours), curve("best gradient step", step)],
        blocks=blocks,
    )


def interpolation(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 6: the compressed algorithm, and its average with the net, at several stages of training."""
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
    """Claim 7: one, two and four linear layers, and one mesa layer, compared with ridge regression."""
    forms = [("linear", 1), ("linear", 2), ("linear", 4), ("mesa", 1)]
    batch = bench.batch(dynamics(sizes), sizes["test_rows"])
    losses = {}
    for (mixer, layers), steps, rate in zip(forms, sizes["steps"], sizes["learning_rate"], strict=True):
        own = {**sizes, "steps": steps, "learning_rate": rate}
        recipe = constructed_net(bench, own, mixer, layers)
        losses[f"{mixer}, {plural(layers, 'layer')}"] = net_losses(bench, recipe, batch)
    losses |= ridge_losses(batch)
    means = {name: float(each.mean()) for name, each in losses.items()}
    one, two, four, mesa, ridge, _ = means.values()
    return Findings(
        {
            "loss of two layers relative to one": two / one,
            "loss of four layers relative to two": four / two,
            "loss of one mesa layer relative to four": mesa / four,
            "loss of one mesa layer relative to ridge": mesa / ridge,
        },
        controls=means,
        curves=[curve(name, each) for name, each in losses.items()],
    )


def depth_to_the_end(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 7, version 2: version 1, and proposition 2 with four learned steps on all pairs."""
    found = depth(bench, sizes)
    fit, test = fit_and_test(bench, dynamics(sizes), sizes)
    learned = learned_coefficients(fit["inputs"], fit["targets"], 4, RIDGE, 0)
    steps = mean_loss(momentum_predictions(test["inputs"].double(), learned, RIDGE, 0), test["targets"])
    found.controls["proposition 2, four steps"] = steps
    for words, label in (("four layers", "linear, 4 layers"), ("one mesa layer", "mesa, 1 layer")):
        found.values[f"loss of {words} relative to proposition 2"] = found.controls[label] / steps
    return found


def chebyshev(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 8: proposition 2 with learned coefficients against a net of as many layers; the closer lag counts."""
    layers = sizes["layers"]
    recipe = constructed_net(bench, sizes, "linear", layers)
    fit, test = fit_and_test(bench, recipe.task, sizes)
    inputs, targets = test["inputs"].double(), test["targets"].double()
    net = position_losses(bench.net(recipe)(test["inputs"]).predictions, targets)
    curves, controls, gaps = [curve(f"linear, {layers} layers", net)], {"loss of the net": float(net.mean())}, []
    for lag, name in ((0, "all pairs"), (1, "without the newest pair")):
        found = learned_coefficients(fit["inputs"], fit["targets"], layers, sizes["ridge"], lag)
        losses = position_losses(momentum_predictions(inputs, found, sizes["ridge"], lag), targets)
        curves.append(curve(f"proposition 2, {name}", losses))
        controls[f"loss of proposition 2, {name}"] = float(losses.mean())
        gaps.append(abs(float(losses.mean() / net.mean()) - 1))
    return Findings({"distance of losses": min(gaps)}, controls=controls, curves=curves)


def chebyshev_by_predictions(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 8, version 2: version 1, the nearest of several numbers of steps, and contracting dynamics.

    The nearest is the number of steps and lag whose predictions differ least from the net's.
    """
    found, layers, ridge = chebyshev(bench, sizes), sizes["layers"], sizes["ridge"]
    recipe = constructed_net(bench, sizes, "linear", layers)
    fit, test = fit_and_test(bench, recipe.task, sizes)
    inputs, ours = test["inputs"].double(), bench.net(recipe)(test["inputs"]).predictions.double()
    learned = {
        (steps, lag): learned_coefficients(fit["inputs"], fit["targets"], steps, ridge, lag)
        for steps in range(max(layers - 2, 1), layers + 3)
        for lag in (0, 1)
    }
    apart = {key: mean_loss(momentum_predictions(inputs, each, ridge, key[1]), ours) for key, each in learned.items()}
    steps, lag = min(apart, key=lambda key: apart[key])
    own = min(apart[layers, each] for each in (0, 1))
    exact = min(mean_loss(ridge_predictions(*pairs(inputs), ridge, each), ours) for each in (0, 1))
    other = bench.batch(dynamics(sizes, transition="contracting"), sizes["test_rows"])
    inputs, targets = other["inputs"].double(), other["targets"]
    loss = float(net_losses(bench, recipe, other).mean())
    gaps = [
        abs(mean_loss(momentum_predictions(inputs, learned[layers, each], ridge, each), targets) / loss - 1)
        for each in (0, 1)
    ]
    found.values |= {
        "nearest number of steps minus the layers": float(steps - layers),
        "difference of predictions over that to ridge": own / exact,
        "distance of losses on contracting dynamics": min(gaps),
    }
    found.controls |= {
        "lag of the nearest": float(lag),
        **{f"difference of predictions, {steps} steps, lag {lag}": each for (steps, lag), each in apart.items()},
        "loss of the net on contracting dynamics": loss,
    }
    return found


def fixed_teacher(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 15: a linear layer trained on a single map shared by all sequences."""
    recipe = constructed_net(bench, sizes, "linear", 1, transition="teacher")
    batch = bench.batch(recipe.task, sizes["test_rows"])
    ours = net_losses(bench, recipe, batch)
    step = position_losses(best_step(batch["inputs"], batch["targets"]), batch["targets"])
    zero = position_losses(torch.zeros_like(batch["targets"]), batch["targets"])
    other = bench.batch(dynamics(sizes), sizes["test_rows"])
    elsewhere = float(net_losses(bench, recipe, other).mean())
    return Findings(
        {
            "loss relative to the best gradient step": float(ours.mean() / step.mean()),
            "loss at the first position over predicting zero": float(ours[0] / zero[0]),
            "loss on other maps over predicting zero": elsewhere / zero_loss(other),
        },
        controls={"loss of the net": float(ours.mean()), "loss of the gradient step": float(step.mean())},
        curves=[curve("trained linear layer", ours), curve("best gradient step", step)],
    )

"""Claims about nets with softmax layers on plain tokens."""

from __future__ import annotations

from mesalm.data.synthetic.nonlinear_dynamics import NonlinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.claims import Findings
from mesalm.lab.experiments.frame import (
    Sizes,
    curve,
    dynamics,
    fit_and_test,
    net_losses,
    ridge_losses,
    zero_loss,
)
from mesalm.lab.linear_decoders import decode
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe


def plain_net(
    bench: Workbench, sizes: Sizes, task: VectorTask, mixers: str | list[str], layers: int, *, mlps: bool = False
) -> NetRecipe:
    """Return the recipe of a net on plain tokens: no norms, sinusoidal positions in the first layer, optional MLPs.

    Without ``width`` in the sizes, the width is four times the input's; without ``heads`` there are 4. With ``warmup``
    in steps, the learning rate is constant after it; otherwise it follows a cosine.
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
    """Claim 16: a softmax and a mesa layer against a deeper net of softmax layers."""
    task, layers = dynamics(sizes), sizes["layers"]
    batch = bench.batch(task, sizes["test_rows"])
    recipes = {
        "softmax then mesa": plain_net(bench, sizes, task, ["softmax", "mesa"], 2),
        f"softmax, {layers} layers": plain_net(bench, sizes, task, "softmax", layers),
    }
    losses = {name: net_losses(bench, recipe, batch) for name, recipe in recipes.items()}
    hybrid, softmax = (float(each.mean()) for each in losses.values())
    ridge = ridge_losses(batch)
    losses["ridge with all pairs"] = ridge["ridge with all pairs"]
    return Findings(
        {"loss of the hybrid relative to softmax": hybrid / softmax},
        controls={
            "loss of the hybrid": hybrid,
            "loss of softmax": softmax,
            **{name: float(each.mean()) for name, each in ridge.items()},
            "loss of predicting zero": zero_loss(batch),
        },
        curves=[curve(name, each) for name, each in losses.items()],
    )


def nonlinear(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 20: features decoded after the first block of a softmax net with MLPs; loss of the hybrid beside it."""
    task = NonlinearDynamics(size=sizes["size"], width=sizes["features_width"], length=sizes["length"])
    deep = plain_net(bench, sizes, task, "softmax", sizes["layers"], mlps=True)
    hybrid = plain_net(bench, sizes, task, ["softmax", "mesa"], 2, mlps=True)
    fit, test = fit_and_test(bench, task, sizes)
    features = [task.features(batch["inputs"][:, -1]) for batch in (fit, test)]
    raw = [task.raw_features(batch["inputs"][:, -1]) for batch in (fit, test)]
    net = bench.net(deep)
    streams = [net(batch["inputs"], output_hidden_states=True).hidden_states for batch in (fit, test)]
    explained = [decode((a[:, -1], features[0]), (b[:, -1], features[1])).r2 for a, b in zip(*streams, strict=True)]
    first, second = (decode((a[:, -1], raw[0]), (b[:, -1], raw[1])).r2 for a, b in list(zip(*streams, strict=True))[:2])
    losses = [net_losses(bench, recipe, test) for recipe in (deep, hybrid)]
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
            "ridge on the states, all pairs": float(ridge_losses(test)["ridge with all pairs"].mean()),
            "loss of predicting zero": zero_loss(test),
        },
        curves=[curve(f"softmax, {sizes['layers']} layers", losses[0]), curve("softmax then mesa", losses[1])],
        notes=["the MLPs are gated GELU, and softmax layers do not scale queries and keys to unit length"],
    )

"""The claim about language models: one softmax layer followed by softmax, linear or mesa layers, on the same text."""

from __future__ import annotations

import hashlib
import json
import math
import statistics

import torch
from torch import Tensor

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.frame import Sizes, curve
from mesalm.lab.workbench import Workbench
from mesalm.train.recipe import Recipe

ARMS = ("softmax", "linear", "mesa")
"""The mixer of all layers but the first."""


def language_recipe(bench: Workbench, sizes: Sizes, arm: str, seed: int) -> Recipe:
    """Return the recipe of one model, with the paper's choices: no forgetting, keys and queries of unit length, one
    ridge per head that starts at 1, no norm after the read-out, and MLPs only in nets of more than two layers. There
    are no convolutions unless the sizes have a ``conv_size``, which then applies to every layer of every arm.
    """
    steps, width = sizes["steps"], sizes["width"]
    device = "cpu" if bench.device == "cpu" else "auto"
    # a separate folder for other sizes, as for the other nets
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]
    return Recipe.build(
        {
            "name": f"{arm}-s{seed}",
            "output_dir": str(bench.cache / f"language-{digest}"),
            "seed": seed,
            "data": {
                "sources": [sizes["source"]],
                "vocab_size": sizes["vocabulary"],
                "sequence_length": sizes["length"],
                "valid_fraction": 0.08,
                "test_fraction": 0.02,
            },
            "model": {
                "mixers": ["softmax", *[arm] * (sizes["layers"] - 1)],
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": sizes["layers"],
                "num_attention_heads": sizes["heads"],
                "max_position_embeddings": sizes["length"],
                "gates": False,
                "conv_size": sizes.get("conv_size", 0),
                "read_norm": False,
                "qk_l2_norm": True,
                "dpfp": sizes["dpfp"],
                "ridge_per_channel": False,
                "ridge_floor": 0.0,
                "ridge_init": 1.0,
                "block_mlps": sizes["layers"] > 2,
            },
            "optim": {"learning_rate": sizes["learning_rate"], "betas": [0.9, 0.95], "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup_fraction": 0.1},
            "train": {"steps": steps, "batch_rows": sizes["batch"], "device": device},
            "validate": {"every": 0, "rows": 0},
            "sample": {"every": 0},
            "checkpoint": {"every": max(steps // 5, 1), "keep": 1},
        }
    )


def at_the_best_rate(bench: Workbench, sizes: Sizes, arm: str, seed: int) -> Sizes:
    """Return the sizes with the one of their ``learning_rates`` that gives the lowest loss on the test rows.

    Scores use other rows, those of valid. Sizes with one ``learning_rate`` are returned unchanged.
    """
    rates = sizes.get("learning_rates")
    if rates is None:
        return sizes
    own = {name: value for name, value in sizes.items() if name != "learning_rates"}
    tried = [{**own, "learning_rate": rate} for rate in rates]
    if len(tried) == 1:
        return tried[0]

    def loss(each: Sizes) -> float:
        recipe = language_recipe(bench, each, arm, seed)
        return float(bench.text_losses(recipe, sizes["test_rows"], "test").mean())

    return min(tried, key=loss)


def in_context_score(losses: Tensor) -> float:
    """Return the mean loss in the last eighth of the window minus that in the second eighth."""
    eighth = max(len(losses) // 8, 1)
    return float(losses[-eighth:].mean() - losses[eighth : 2 * eighth].mean())


def in_standard_errors(differences: list[float]) -> float:
    """Return the mean of paired differences in units of its standard error, sd / sqrt(n).

    That is Student's t with n - 1 degrees of freedom: with three values, 2 is p = 0.18 (one-sided 0.09), 4.3 is 0.05.
    """
    return statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))


def language_order(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 19: all arms with the same seeds, rows and order; differences are paired by seed."""
    seeds = range(bench.seed * sizes["seeds"], (bench.seed + 1) * sizes["seeds"])
    own = {arm: at_the_best_rate(bench, sizes, arm, seeds[0]) for arm in ARMS}
    curves = {
        arm: [bench.text_losses(language_recipe(bench, own[arm], arm, seed), sizes["test_rows"]) for seed in seeds]
        for arm in ARMS
    }
    losses = {arm: [float(each.mean()) for each in found] for arm, found in curves.items()}
    scores = {arm: [in_context_score(each) for each in found] for arm, found in curves.items()}

    def less(of: dict[str, list[float]], arm: str, than: str = "mesa") -> list[float]:
        return [other - one for other, one in zip(of[arm], of[than], strict=True)]

    linear, softmax, mesa = (statistics.fmean(losses[arm]) for arm in ("linear", "softmax", "mesa"))

    return Findings(
        {
            **{
                f"loss of {arm} minus mesa in standard errors": in_standard_errors(less(losses, arm))
                for arm in ("linear", "softmax")
            },
            "loss of linear minus softmax in standard errors": in_standard_errors(less(losses, "linear", "softmax")),
            "share of the gap from linear to softmax that mesa closes": (linear - mesa) / (linear - softmax),
        },
        controls={
            **{f"rate of {arm}": own[arm]["learning_rate"] for arm in ARMS},
            **{f"loss of {arm}": statistics.fmean(losses[arm]) for arm in ARMS},
            **{
                f"loss of {arm}, seed {seed}": loss
                for arm in ARMS
                for seed, loss in zip(seeds, losses[arm], strict=True)
            },
            **{f"in-context score of {arm}": statistics.fmean(scores[arm]) for arm in ARMS},
            **{
                f"in-context score of {arm} minus mesa in standard errors": in_standard_errors(less(scores, arm))
                for arm in ("linear", "softmax")
            },
        },
        curves=[curve(f"softmax, then {arm}", torch.stack(found).mean(0)) for arm, found in curves.items()],
        y_label="loss in nats",
        notes=[
            f"{sizes['seeds']} training seeds; softmax layers have rotary positions where the paper adds them to the "
            "tokens",
            "in-context score: the loss in the last eighth of the window less that in the second eighth",
        ],
    )

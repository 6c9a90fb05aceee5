"""Rates and first weights that carry over between widths: maximal update parametrisation (Yang et al. 2022).

arXiv 2203.03466, table 8. Sizes grow with ``hidden_size``, but for that of a head. Factors on embeddings and logits lie
in the weights and in the gain of the last norm, as Adam's updates allow, so that a saved model is a plain one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mesalm.train.joined import hidden_matrices


@torch.no_grad()
def scale_first_weights(model: nn.Module, base_width: int) -> None:
    """Scale fresh weights: hidden matrices by the square root of base over width, others as their rates."""
    scale, outer = _scales(model, base_width)
    hidden = hidden_matrices(model)
    for parameter in model.parameters():
        parameter.mul_(scale**0.5 if id(parameter) in hidden else outer.get(id(parameter), 1.0))


def scaled_groups(
    groups: list[dict[str, Any]], model: nn.Module, base_width: int | None, power: float = 1.0
) -> list[dict[str, Any]]:
    """Part groups of parameters by the factor of their rate, ``rate_scale``.

    Hidden matrices have base over width to the ``power``. Weight decay is divided by the factor: a step takes as much
    off a weight at all widths. Without ``base_width`` the groups stay as they are.

    Raises ValueError for a model without ``hidden_size``, or without a norm before its head.
    """
    if base_width is None:
        return groups
    scale, outer = _scales(model, base_width)
    scales = dict.fromkeys(hidden_matrices(model), scale**power) | outer
    parted = []
    for group in groups:
        for factor in dict.fromkeys(scales.get(id(weight), 1.0) for weight in group["params"]):
            chosen = [weight for weight in group["params"] if scales.get(id(weight), 1.0) == factor]
            decay = group["weight_decay"] / factor
            parted.append({**group, "params": chosen, "rate_scale": factor, "weight_decay": decay})
    return parted


def _scales(model: Any, base_width: int) -> tuple[float, dict[int, float]]:
    """Return base over width, and the factors of embeddings and of the last norm's gain by the parameters' ids.

    Where embeddings are multiplied by the square root of the width, they have the inverse of it, and a tied head too.
    """
    config: Any = getattr(model, "config", None)
    norm = getattr(getattr(model, "model", None), "norm", None)
    gains = [] if norm is None else list(norm.parameters())
    if not gains or not hasattr(config, "hidden_size"):
        raise ValueError(f"optim.base_width: {type(model).__name__} has no hidden_size and last norm; leave it out")
    scale = base_width / config.hidden_size
    embedding = scale**0.5 if getattr(config, "scale_embeddings", False) else 1.0
    head = embedding if config.tie_word_embeddings else 1.0
    weight = model.get_input_embeddings().weight
    return scale, {id(weight): embedding} | {id(gain): scale / head for gain in gains}

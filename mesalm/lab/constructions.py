"""Explicitly constructed weights: linear layers that perform gradient steps, and layers that precondition.

Tokens are the constructed [0, s_t, s_t, s_{t-1}] of `mesalm.regressor.regressor_mesa`; parts are counted from 0. A head
has keys W_k e_{t'}, queries W_q e_t and values W_v e_{t'}, and adds P sum_{t' <= t} v_{t'} k_{t'}' q_t to token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesalm.regressor.configuration_regressor import SLOTS, RegressorConfig
from mesalm.regressor.regressor_mesa import MesaRegressor

PREDICTION, QUERY, CURRENT, PAST = range(SLOTS)


class HeadProducts(NamedTuple):
    """The weight products of a linear head: W_k' W_q and P W_v, each [E, E] for tokens of width E."""

    query_key: Tensor
    output_value: Tensor


def linear_net(
    layers: int, heads: int, size: int, clip: float | None = None, dtype: torch.dtype = torch.float32
) -> MesaRegressor:
    """Make a net of linear layers on constructed tokens, with heads as wide as a token; weights must be set later."""
    config = RegressorConfig(
        input_size=size,
        hidden_size=SLOTS * size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=SLOTS * size,
        mixers="linear",
        tokens="constructed",
        positions=False,
        residual_clip=clip,
    )
    net: Any = MesaRegressor(config)
    return net.to(dtype).eval().requires_grad_(False)


def set_products(net: MesaRegressor, layers: Sequence[Sequence[HeadProducts]]) -> MesaRegressor:
    """Set the products of all heads of a `linear_net`, by layer, with the identity as W_k and W_v."""
    for block, heads in zip(net.layers, layers, strict=True):
        mixer: Any = block.mixer
        eye = torch.eye(mixer.head_dim).repeat(len(heads), 1)
        mixer.k_proj.weight.copy_(eye)
        mixer.v_proj.weight.copy_(eye)
        mixer.q_proj.weight.copy_(torch.cat([head.query_key for head in heads]))
        mixer.o_proj.weight.copy_(torch.cat([head.output_value for head in heads], dim=1))
    return net


def products_of(net: MesaRegressor) -> list[list[HeadProducts]]:
    """Return the products of every head, by layer."""
    layers = []
    for block in net.layers:
        mixer: Any = block.mixer
        size = mixer.head_dim
        query, key, value = (
            projection.weight.detach().unflatten(0, (-1, size))
            for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        )
        output = mixer.o_proj.weight.detach().unflatten(1, (-1, size)).movedim(1, 0)
        layers.append([HeadProducts(a, b) for a, b in zip(key.mT @ query, output @ value, strict=True)])
    return layers


def placed(size: int, blocks: dict[tuple[int, int], Tensor | float]) -> Tensor:
    """Return a matrix [4 size, 4 size] with the given blocks; a number is a multiple of the identity."""
    matrix = torch.zeros(SLOTS * size, SLOTS * size, dtype=torch.float64)
    for (row, column), block in blocks.items():
        filled = block * torch.eye(size, dtype=torch.float64) if isinstance(block, (int, float)) else block
        matrix[row * size : (row + 1) * size, column * size : (column + 1) * size] = filled
    return matrix


def gradient_step_head(start: Tensor, rate: float) -> HeadProducts:
    """Return the head of proposition 1: it adds rate sum_{t' <= t} (s_{t'} - start s_{t'-1}) s_{t'-1}' s_t.

    ``start`` [D, D]. If the first part of each token is start s_t, the head turns it into the prediction after one
    gradient step from ``start``.
    """
    size = start.shape[0]
    return HeadProducts(
        placed(size, {(PAST, CURRENT): 1.0}),
        placed(size, {(PREDICTION, CURRENT): rate, (PREDICTION, PAST): -rate * start.double()}),
    )


def polynomial_heads(weights: Sequence[float], rates: Sequence[float], size: int) -> list[list[HeadProducts]]:
    """Return layers that predict sum_j weights_j G_t r_j, r_0 = s_t, r_{j+1} = r_j - rates_j S S' r_j.

    G_t = sum_{t' <= t} s_{t'} s_{t'-1}', S S' = sum_{t' < t} s_{t'} s_{t'}'. One layer per weight: its first head adds
    weights_j G_t r_j to the prediction, its second updates r, which is stored in the second part of the token.
    """
    layers = []
    for weight, rate in zip(weights, rates, strict=True):
        looks = placed(size, {(PAST, QUERY): 1.0})
        predicts = HeadProducts(looks, placed(size, {(PREDICTION, CURRENT): weight}))
        steps = HeadProducts(looks, placed(size, {(QUERY, PAST): -rate}))
        layers.append([predicts, steps])
    return layers


def neumann_coefficients(depth: int, scale: float, ridge: float) -> tuple[list[float], list[float]]:
    """Return weights and rates for which `polynomial_heads` is ridge regression by the truncated Neumann series.

    (S S' + ridge)^-1 s_t is approximated by scale^-1 sum_{j < depth} (I - (S S' + ridge) / scale)^j s_t, which requires
    ``scale`` above half the largest eigenvalue. A layer cannot scale r, so the factor (1 - ridge / scale) that the
    ridge contributes in each step is absorbed into the later weights and rates.
    """
    shrink = 1.0 - ridge / scale
    return [shrink**j / scale for j in range(depth)], [1.0 / (scale * shrink)] * depth

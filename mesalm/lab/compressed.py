"""The compressed algorithm of a linear net: one number per block of its heads' weight products (RevAlg-d).

von Oswald et al. 2023 (arXiv 2309.05858), section 4.1 and appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mesalm.lab.constructions import HeadProducts, linear_net, products_of, set_products
from mesalm.lab.workbench import fixed
from mesalm.regressor.configuration_regressor import SLOTS
from mesalm.regressor.regressor_mesa import MesaRegressor

Layers = list[list[HeadProducts]]


def block_scalars(matrix: Tensor) -> Tensor:
    """Return the mean of the diagonal of each block of size D, [4, 4], of a matrix [4 D, 4 D]."""
    return _blocks(matrix).diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def diagonal_mass(layers: Layers) -> float:
    """Return the share of the products' sum of squares that lies on the diagonals of their blocks."""
    matrices = [matrix for heads in layers for head in heads for matrix in head]
    on = sum(float(_blocks(matrix).diagonal(dim1=-2, dim2=-1).square().sum()) for matrix in matrices)
    return on / sum(float(matrix.square().sum()) for matrix in matrices)


def compressed(layers: Layers) -> Layers:
    """Replace each block of the products by the identity times the mean of the block's diagonal."""
    return [[HeadProducts(*(_rebuilt(matrix) for matrix in head)) for head in heads] for heads in layers]


def averaged(first: Layers, second: Layers) -> Layers:
    """Return the equal average of the products of two nets, head by head."""
    return [
        [
            HeadProducts(*((a + b) / 2 for a, b in zip(one, other, strict=True)))
            for one, other in zip(*pair, strict=True)
        ]
        for pair in zip(first, second, strict=True)
    ]


def with_products(net: MesaRegressor, layers: Layers) -> MesaRegressor:
    """Return a net like the given one, but with other products."""
    config = net.config
    like = linear_net(config.num_hidden_layers, config.num_attention_heads, config.input_size, config.residual_clip)
    like.config.copy_slot = config.copy_slot
    return fixed(set_products(like, layers), net.device)


def counts(net: MesaRegressor) -> tuple[int, int]:
    """Return the numbers per head when compressed, 16 per product, and as trained, those of its four maps."""
    heads = net.config.num_attention_heads
    trained = sum(parameter.numel() for parameter in net.layers.parameters())
    return 2 * SLOTS**2, trained // (heads * net.config.num_hidden_layers)


def learned_rate(net: MesaRegressor) -> float:
    """Return the gradient-step rate of a one-layer net, summed over heads, from key s_{t-1}, query and value s_t."""
    (heads,) = products_of(net)
    return sum(float(block_scalars(head.query_key)[3, 2] * block_scalars(head.output_value)[0, 2]) for head in heads)


def _blocks(matrix: Tensor) -> Tensor:
    size = matrix.shape[0] // SLOTS
    return matrix.unflatten(0, (SLOTS, size)).unflatten(2, (SLOTS, size)).permute(0, 2, 1, 3)


def _rebuilt(matrix: Tensor) -> Tensor:
    size = matrix.shape[0] // SLOTS
    return torch.kron(block_scalars(matrix).contiguous(), torch.eye(size, dtype=matrix.dtype, device=matrix.device))

"""The ungated mesa layer by the paper's recursion: one rank-one update of the inverse per token."""

from __future__ import annotations

import torch
from torch import Tensor


def sherman_morrison(query: Tensor, key: Tensor, value: Tensor, inverse_ridge: float) -> Tensor:
    """Return Phi_t q_t, [B, T, H, V], with Phi_t the ridge regression of the values on the keys up to t.

    R_t = R_{t-1} - R_{t-1} k k' R_{t-1} / (1 + k' R_{t-1} k), R_0 = inverse_ridge I (the paper's lambda);
    Phi_t = sum_{t' <= t} v_{t'} k_{t'}' R_t. query and key [B, T, H, K], value [B, T, H, V], computed in their dtype;
    autograd passes through. von Oswald et al. 2023 (arXiv 2309.05858), section 3.
    """
    batch, length, heads, size = key.shape
    inverse = inverse_ridge * torch.eye(size, dtype=key.dtype, device=key.device).expand(batch, heads, size, size)
    cross = value.new_zeros(batch, heads, value.shape[-1], size)
    outputs = []
    for t in range(length):
        k, v, q = key[:, t].unsqueeze(-1), value[:, t].unsqueeze(-1), query[:, t].unsqueeze(-1)
        along = inverse @ k
        inverse = inverse - along @ along.mT / (1.0 + k.mT @ along)
        cross = cross + v @ k.mT
        outputs.append((cross @ (inverse @ q)).squeeze(-1))
    return torch.stack(outputs, dim=1)

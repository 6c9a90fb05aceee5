"""The state of a recurrent head late in a window: effective rank, condition number, and where it reads from.

The keys seen so far are a head's in-context data, its state H_t their (decayed, gated) second moment, and o_t a
weighted sum of the values,

    H_t = sum_{s <= t} zeta_ts beta_s k_s k_s'      o_t = sum_{s <= t} zeta_ts beta_s (k_s' x_t) v_s,
    x_t = (H_t + ridge)^-1 q_t for a mesa head, q_t for a linear one,

with zeta_ts the product of the forget gates after s. In a delta head, every token corrects what earlier ones wrote: the
weight of v_s is beta_s k_s' x_s with x_t = q_t and x_{s-1} = gamma_s (x_s - beta_s k_s k_s' x_s). Everything is
computed densely in float64.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from mesalm.lab.inspection.reach import lag_shares


def survey(
    query: Tensor,
    key: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    ridge: Tensor | None,
    tokens: list[int],
    corrects: bool = False,
) -> dict[str, Tensor]:
    """Compute properties of the states, and of the mesa heads' linear systems, at some tokens.

    Args:
        query: `[T, H, K]`; key: `[T, G, K]`; log_forget, input_gate: `[T, G]`; all float64 on the CPU.
        ridge: `[G, K]`, None for heads without a solver.
        tokens: the S positions t.
        corrects: whether the heads are delta heads.

    Returns:
        Float64 tensors by name. rank `[S, G]`: the effective rank of H_t, exp of the entropy of its normalised
        eigenvalues (Roy and Vetterli 2007). lags `[S, G, L]`: the shares of |weight| by distance in the read-out
        (`reach.LAGS`), averaged over the query heads that read the key head. For mesa heads only: dimension `[S, G]`:
        the effective dimension of the ridge regression, tr H_t (H_t + ridge)^-1; condition, scaled `[S, G]`: condition
        numbers of H_t + diag(ridge) and of the form that the solver works on, ridge^-1/2 H_t ridge^-1/2 + 1.
    """
    # avoids differences of infinities; exp(-700) is negligible beside a token's own weight
    total = log_forget.clamp(min=-700.0).cumsum(0)
    keys = key.transpose(0, 1)  # [G, T, K]
    identity = torch.eye(key.shape[-1], dtype=key.dtype)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for t in tokens:
        weight = ((total[t] - total[: t + 1]).exp() * input_gate[: t + 1]).T.unsqueeze(-1)  # [G, t + 1, 1]
        written = keys[:, : t + 1] * weight
        gram = written.mT @ keys[:, : t + 1]
        rows = query[t].unflatten(0, (key.shape[1], -1))  # [G, R, K]
        found["rank"].append(effective_rank(gram))
        if ridge is not None:
            system = gram + torch.diag_embed(ridge)
            # tr H (H + L)^-1 = K - tr L (H + L)^-1
            shrunk = (ridge * torch.linalg.inv(system).diagonal(dim1=-2, dim2=-1)).sum(-1)
            found["dimension"].append(key.shape[-1] - shrunk)
            root = ridge.sqrt()
            found["condition"].append(_condition(system))
            found["scaled"].append(_condition(gram / (root.unsqueeze(-1) * root.unsqueeze(-2)) + identity))
            rows = torch.linalg.solve(system.unsqueeze(1), rows.unsqueeze(-1)).squeeze(-1)
        gates = (log_forget[: t + 1], input_gate[: t + 1])
        weights = _corrected(rows, keys, *gates) if corrects else rows @ written.mT
        found["lags"].append(lag_shares(weights).mean(1))
    return {name: torch.stack(values) for name, values in found.items()}


def _corrected(rows: Tensor, keys: Tensor, log_forget: Tensor, input_gate: Tensor) -> Tensor:
    """Return a delta head's read-out weights `[G, R, t + 1]` for the queries `rows` `[G, R, K]` of token t."""
    weights = []
    for s in reversed(range(len(input_gate))):
        key, gate = keys[:, s : s + 1], input_gate[s, :, None, None]
        weight = gate * (rows * key).sum(-1, keepdim=True)
        weights.append(weight)
        rows = (rows - weight * key) * log_forget[s, :, None, None].exp()
    return torch.cat(weights[::-1], -1)


def effective_rank(gram: Tensor) -> Tensor:
    """Return exp of the entropy of the normalised eigenvalues of positive semidefinite `[..., K, K]`; 0 for zeros.

    It lies between 1 and the rank, and equals the rank if all nonzero eigenvalues are equal.
    """
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    whole = eigenvalues.sum(-1, keepdim=True)
    share = eigenvalues / whole.clamp(min=torch.finfo(gram.dtype).tiny)
    rank: Tensor = torch.exp(-torch.special.xlogy(share, share).sum(-1))
    return torch.where(whole.squeeze(-1) > 0, rank, 0.0)


def _condition(matrix: Tensor) -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(matrix)
    return eigenvalues[..., -1] / eigenvalues[..., 0]

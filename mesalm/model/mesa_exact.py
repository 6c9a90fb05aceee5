"""Compute mesa attention token by token: the reference that every faster path is tested against.

    H_t = gamma_t H_{t-1} + beta_t k_t k_t'      G_t = gamma_t G_{t-1} + beta_t k_t v_t'
    o_t = G_t' (H_t + diag(ridge))^-1 q_t

The gated mesa layer of MesaNet (arXiv 2506.05233, section 2), with G stored key index first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunk_states import compute_dtype, without_autocast
from .operator_inputs import values_are_checked
from .operator_records import Operands


def mesa_exact(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve one dense K x K system per token by Cholesky factorisation, differentiable by autograd.

    Operands may have any floating-point dtype; computation is in float32 or better. Only the symmetric part of the
    initial gram is used. Returns output `[B, T, H, V]`, final gram and cross, and the solutions `[B, T, H, K]`. Raises
    torch.linalg.LinAlgError if some H_t + ridge is not positive definite; within `unchecked_values` the solution is
    NaN there instead.
    """
    query, value = operands.query, operands.value
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    dtype = compute_dtype(query.dtype)
    with without_autocast(query.device):
        q = query.to(dtype).view(B, T, G, H // G, K).mT  # [B, T, G, K, H / G]
        k, v = operands.key.to(dtype).unsqueeze(-1), value.to(dtype).unsqueeze(-1)
        gamma = operands.log_forget.to(dtype).exp()[..., None, None]
        beta = operands.input_gate.to(dtype)[..., None, None]
        Lambda = torch.diag_embed(operands.ridge.to(dtype))
        H_t, G_t = 0.5 * (operands.gram + operands.gram.mT).to(dtype), operands.cross.to(dtype)
        factorise = _cholesky if values_are_checked() else _cholesky_or_nan
        outputs, solutions = [], []
        for t in range(T):
            H_t = gamma[:, t] * H_t + beta[:, t] * k[:, t] @ k[:, t].mT
            G_t = gamma[:, t] * G_t + beta[:, t] * k[:, t] @ v[:, t].mT
            x = torch.cholesky_solve(q[:, t], factorise(H_t + Lambda))
            outputs.append((G_t.mT @ x).mT)
            solutions.append(x.mT)
        if T == 0:
            return query.new_zeros(B, T, H, V), H_t, G_t.clone(), query.new_zeros(B, T, H, K, dtype=dtype)
        output = torch.stack(outputs, 1).reshape(B, T, H, V).to(query.dtype)
        return output, H_t, G_t, torch.stack(solutions, 1).reshape(B, T, H, K)


def _cholesky(matrix: Tensor) -> Tensor:
    """Return the Cholesky factors of matrices `[..., K, K]`, or raise torch.linalg.LinAlgError."""
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        raise torch.linalg.LinAlgError(
            f"H_t + ridge is not positive definite in {matrix.dtype}: use a larger ridge, smaller keys or float64; "
            "or the initial gram has a negative eigenvalue"
        ) from None


def _cholesky_or_nan(matrix: Tensor) -> Tensor:
    """Return the Cholesky factors of matrices `[..., K, K]`, filled with NaN where there is none."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    return lower.masked_fill((info != 0)[..., None, None], torch.nan)

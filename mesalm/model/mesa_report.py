"""Measure in float64, independently of the solver, how well systems were solved."""

from __future__ import annotations

import torch
from torch import Tensor

from .chunk_states import chunk_count, to_chunks, without_autocast
from .mesa_cg import conjugate_gradients
from .mesa_problems import cut_problems
from .operator_records import Operands

ERROR_DIGITS = 1e-2
"""Relative accuracy of the solve for the error itself."""


def relative_residual(solution: Tensor, operands: Operands, tolerance: float) -> tuple[Tensor, Tensor]:
    """Measure |q - (H + ridge) x| / |q| in float64, and whether the error of x is within `tolerance`.

    Returns the largest relative residual `[B, N, H]` (float64), and whether every x is within tolerance of the exact
    solution, `[B, N, H]` (bool), per chunk of 64 tokens. The residual gives an upper bound on the error. Where that
    bound is too weak, the error e is computed from (H + ridge) e = q - (H + ridge) x.
    """
    query, key, gram = operands.query, operands.key, operands.gram
    B, T, H, K = query.shape
    G, N = key.shape[2], chunk_count(T)
    if B * T == 0:
        nothing = torch.zeros(B, N, H, dtype=torch.float64, device=query.device)
        return nothing, nothing == 0
    with torch.no_grad(), without_autocast(query.device):
        double = torch.float64
        value, cross = key.new_zeros(*key.shape[:3], 1), gram.new_zeros(*gram.shape[:3], 1)  # H does not depend on them
        problems = cut_problems(operands._replace(value=value, cross=cross), double)
        rhs = to_chunks(query, G, double).mul_(problems.inverse_root)
        x = to_chunks(solution, G, double).div_(problems.inverse_root)
        systems = problems.systems(rhs.shape[1])
        residual = rhs - systems.apply(x)
        length = (x * problems.inverse_root).norm(dim=-1)
        bound = residual.norm(dim=-1) * problems.inverse_root.amax(-1)
        kept = bound * (1.0 + tolerance) <= tolerance * length
        unsure = (~kept).any(-1).nonzero().squeeze(-1)
        if len(unsure):
            part = systems.take(unsure)
            error, _ = conjugate_gradients(part, residual[unsure], ERROR_DIGITS, 10 * K)
            # e need not be exact: the residual that remains bounds its own error.
            left = (residual[unsure] - part.apply(error)).norm(dim=-1) * part.root.amax(-1)
            above = (error * part.root).norm(dim=-1) + left
            kept[unsure] |= above * (1.0 + tolerance) <= tolerance * length[unsure]
        size, whole = ((rows / problems.inverse_root).norm(dim=-1) for rows in (residual, rhs))
        relative = torch.where(whole > 0, size / whole, size)

    def by_head(rows: Tensor) -> Tensor:
        return rows.view(G, B, N, H // G, -1).permute(1, 2, 0, 3, 4).flatten(2, 3)

    return by_head(relative).amax(-1), by_head(kept).all(-1)

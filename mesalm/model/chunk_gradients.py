"""Gradients of a chunk-parallel operator with respect to keys, values and gates, which enter through its states.

The operator reads o_t = G_t' x_t and, for the mesa layer, solves (H_t + ridge) x_t = q_t, with

    H_t = gamma_t H_{t-1} + beta_t k_t k_t'        G_t = gamma_t G_{t-1} + beta_t k_t v_t'

Given x_t, the gradient `d_t` of o_t and the adjoint y_t = (H_t + ridge)^-1 G_t d_t, the gradient of G_t is
x_t d_t' and that of H_t is -(x_t y_t' + y_t x_t') / 2; linear attention is the case without y. The rest is the chain
rule through the two recurrences; docs/mathematics.md derives every formula.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_states import Decay, apply_mask, cache_blocks, repeat_rows


class TokenGradients(NamedTuple):
    """Gradients by problem: key `[P, C, K]`, value `[P, C, V]`, gate and log_forget `[P, C, 1]`."""

    key: Tensor
    value: Tensor
    input_gate: Tensor
    log_forget: Tensor


def local_adjoints(
    rows: Tensor, upstream: Tensor, adjoint: Tensor | None, decay: Decay
) -> tuple[Tensor, Tensor | None]:
    """Sum the contributions of each chunk's tokens to the gradient of the state at the chunk's start.

    rows (x) and adjoint (y) `[P, M, K]`, upstream (d) `[P, M, V]`. Returns the gradient of the cross state
    `[P, K, V]` and of the gram state `[P, K, K]` (symmetric; None without an adjoint).
    """
    faded = (rows * repeat_rows(decay.start, rows.shape[1])).mT
    cross = torch.bmm(faded, upstream)
    if adjoint is None:
        return cross, None
    gram = torch.bmm(faded, adjoint)
    return cross, (gram + gram.mT).mul_(-0.5)


def token_gradients(
    rows: Tensor,
    upstream: Tensor,
    adjoint: Tensor | None,
    key: Tensor,
    value: Tensor,
    input_gate: Tensor,
    decay: Decay,
    cross: Tensor,
    gram: Tensor | None,
    cross_end: Tensor,
    gram_end: Tensor | None,
) -> TokenGradients:
    """Compute the gradients of every token's key, value and gates.

    rows, upstream, adjoint as in `local_adjoints`; key `[P, C, K]`, value `[P, C, V]`, input_gate
    `[P, C, 1]`; cross and gram: states at the chunk's start; cross_end and gram_end: gradients at its end.
    There is no division by a gate, so gates of 0 are valid. The gradient of log_forget sums only the terms
    that pass through that gate, so it does not lose digits to cancellation.
    """
    blocks = cache_blocks(decay.mask)
    if len(blocks) > 1:
        operands = (rows, upstream, adjoint, key, value, input_gate, decay, cross, gram, cross_end, gram_end)
        parts = [token_gradients(*(_take(x, block) for x in operands)) for block in blocks]
        return TokenGradients(*map(torch.cat, zip(*parts, strict=True)))
    read = torch.bmm(rows, key.mT)  # [P, M, C]
    wanted = torch.bmm(upstream, value.mT)
    through_start = torch.bmm(upstream, cross.mT)
    if adjoint is not None:
        assert gram is not None
        wanted.baddbmm_(adjoint, key.mT, alpha=-1)
        through_start.baddbmm_(adjoint, gram, alpha=-1)
    apply_mask(read, decay.mask)
    pairs = read * wanted
    apply_mask(wanted, decay.mask)

    # Gradients from later chunks arrive only through the gradient at this chunk's end.
    value_tail = torch.bmm(key, cross_end).mul_(decay.end)
    d_value = torch.baddbmm(value_tail, read.mT, upstream)
    key_tail = torch.bmm(value, cross_end.mT).mul_(decay.end)
    tail = (value_tail * value).sum(-1)
    if gram_end is not None:
        gram_tail = torch.bmm(key, gram_end).mul_(decay.end)
        tail = tail + (gram_tail * key).sum(-1)
        key_tail.add_(gram_tail, alpha=2)
    d_key = key_tail.baddbmm_(wanted.mT, rows)
    if adjoint is not None:
        d_key.baddbmm_(read.mT, adjoint, alpha=-1)
    d_gate = (d_value * value).sum(-1)
    if adjoint is not None:
        d_gate = 0.5 * (d_gate + (d_key * key).sum(-1))
    gate = input_gate.squeeze(-1)
    log_forget = _gate_gradient(
        pairs, gate, tail * gate, (through_start * rows).sum(-1), decay, _inner(cross, cross_end, gram, gram_end)
    )
    return TokenGradients(
        d_key.mul_(input_gate), d_value.mul_(input_gate), d_gate.unsqueeze(-1), log_forget.unsqueeze(-1)
    )


def _take(operand: Tensor | Decay | None, block: slice) -> Any:
    if operand is None:
        return None
    return operand.take(block) if isinstance(operand, Decay) else operand[block]


def _inner(cross: Tensor, cross_end: Tensor, gram: Tensor | None, gram_end: Tensor | None) -> Tensor:
    """Return the inner products of the states at the chunk's start with the gradients at its end: `[P, 1]`."""
    product = (cross * cross_end).sum((-2, -1))
    if gram is not None and gram_end is not None:
        product = product + (gram * gram_end).sum((-2, -1))
    return product.unsqueeze(-1)


def _gate_gradient(
    pairs: Tensor, gate: Tensor, tail: Tensor, through_start: Tensor, decay: Decay, across: Tensor
) -> Tensor:
    """Sum the gradient of each log gate `[P, C]` over the (source, reader) pairs that it lies between.

    pairs `[P, M, C]` (reader, source; with decay, without input gate) and through_start `[P, M]` (reader;
    source before the chunk) have their reader in the chunk; tail `[P, C]` (source) and across `[P, 1]` after it.
    """
    P, M, C = pairs.shape
    per_head = pairs.view(P, M // C, C, C)
    by_token = (per_head.sum(1) if M > C else per_head[:, 0]) * gate.unsqueeze(1)
    from_start = through_start.view(P, M // C, C).sum(1) * decay.start.squeeze(-1)
    ones = torch.ones(C, C, dtype=pairs.dtype, device=pairs.device)
    readers = ones.triu()  # gate j (row) affects readers u >= j
    sources = ones.tril(-1)  # of what sources s < j wrote
    inside = torch.matmul(readers, by_token).mul_(sources).sum(-1)
    return inside + torch.matmul(from_start, readers.mT) + torch.matmul(tail, sources.mT) + decay.whole[:, 0] * across

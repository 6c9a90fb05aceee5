"""Compare a variant's output and gradients, in float32, with the exact operator in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from cases import CaseOperands
from float32_results import run_precisely
from torch import Tensor
from variants import Variant

from mesalm.model.operator_mesa import mesa_attention

WHOLE_TRUTH = 4096
"""Sequences up to this length are compared at every token, longer ones at their last tokens."""
LAST_TOKENS = 512
"""Tokens compared at the end of a longer sequence, where the systems are hardest."""
GRADIENT_TOKENS = 512
"""Tokens that gradients are compared on: the exact ones hold a state per token."""
GRADIENT_BYTES = 2**31
"""Bytes of one state per token of the heads whose exact gradients are computed together on a card."""
TABLED_GRADIENTS = ("query", "key", "log_forget")


@dataclass(frozen=True)
class Truth:
    """What is true of some operands, in float64: the output from token `first` on, and gradients.

    gradients: for an upstream gradient `upstream` of the output of the first tokens, by operand; None where a case asks
    for no gradients.
    """

    first: int
    output: Tensor
    upstream: Tensor | None = None
    gradients: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Errors:
    """Relative errors in the 2-norm.

    output: of the whole output; quantile, worst: of its tokens and heads, the 99 % quantile and the largest.
    from_token: the first token compared. gradients: by operand, empty where none were asked for.
    """

    output: float
    quantile: float
    worst: float
    from_token: int
    gradients: dict[str, float] = field(default_factory=dict)

    @property
    def gradient(self) -> float | None:
        """Return the largest error of the gradients of query, key and log_forget."""
        return max((self.gradients[name] for name in TABLED_GRADIENTS if name in self.gradients), default=None)


def find_truth(
    operands: CaseOperands,
    gradients: bool = True,
    upstream: float = 1.0,
    rows: int | None = None,
    whole: int = WHOLE_TRUTH,
    last: int = LAST_TOKENS,
) -> Truth:
    """Compute the exact output, and the exact gradients on the first tokens, in float64, a few heads at a time.

    upstream: the standard deviation of the upstream gradient, which is rounded to the operands' dtype. rows: of the
    first sequences only. whole, last: the longest sequence that is compared at every token, and how many of the last
    tokens are of longer ones.
    """
    operands = operands.rows(rows)
    T = operands.query.shape[1]
    first = 0 if whole >= T else T - last
    with torch.no_grad():
        output = _exact_tail(operands.double(), first)
    if not gradients:
        return Truth(first, output)
    short = operands.tokens(0, GRADIENT_TOKENS)
    generator = torch.Generator().manual_seed(0)
    drawn = upstream * torch.randn(short.value.shape, generator=generator, dtype=torch.float64)
    given = drawn.to(operands.query)
    B, T, H, K = short.query.shape
    # a GPU takes the tokens of many heads in one call; on a CPU the states of one head are enough
    together = max(1, GRADIENT_BYTES // (8 * B * T * K * K)) if operands.query.is_cuda else 1
    by_head = []
    for h in range(0, H, together):
        leaves = short.heads(h, h + together).double().leaves()
        exact = mesa_attention(*leaves, backend="exact")
        by_head.append(torch.autograd.grad(exact, leaves, given[:, :, h : h + together].double()))
    joined = [torch.cat(parts, 2 if parts[0].dim() > 2 else 0) for parts in zip(*by_head, strict=True)]
    return Truth(first, output, given, tuple(joined))


def _exact_tail(operands: CaseOperands, first: int) -> Tensor:
    """Compute the exact output of the tokens from `first` on, from the state that the equation's sum gives there."""
    state = None
    if first:
        before = operands.tokens(0, first)
        # -700 is zero in float64 and, unlike -inf, can be subtracted
        total = before.log_forget.clamp(min=-700.0).cumsum(1)
        weight = (total[:, -1:] - total).exp() * before.input_gate
        weighted = before.key * weight.unsqueeze(-1)
        gram = torch.einsum("bthk,bthl->bhkl", weighted, before.key)
        state = (gram, torch.einsum("bthk,bthv->bhkv", weighted, before.value))
    tail = operands.tokens(first, operands.query.shape[1])
    return mesa_attention(*tail, initial_state=state, backend="exact")


def output_errors(output: Tensor, truth: Truth) -> Errors:
    """Compare an output `[B, T, H, V]`, or one that begins at the truth's first token, with the truth."""
    got = output[:, -truth.output.shape[1] :].detach().to(truth.output)
    distance, size = (torch.linalg.vector_norm(x, dim=-1) for x in (got - truth.output, truth.output))
    tokens = (distance / size).flatten()
    # torch.quantile refuses more than 2^24 numbers
    rank = max(1, round(0.99 * tokens.numel()))
    return Errors(
        float(distance.norm() / size.norm()),
        float(tokens.kthvalue(rank).values),
        float(tokens.max()),
        truth.first,
    )


def find_errors(variant: Variant, operands: CaseOperands, truth: Truth) -> Errors:
    """Compare what a variant gives in float32 with the truth; the gradients on the first tokens of the case."""
    rows = operands.rows(len(truth.output))
    errors = output_errors(run_precisely(variant, rows)[0], truth)
    if truth.upstream is None:
        return errors
    _, got = run_precisely(variant, rows.tokens(0, GRADIENT_TOKENS), truth.upstream)
    by_name = {
        name: float((mine.double() - exact).norm() / exact.norm())
        for name, mine, exact in zip(CaseOperands._fields, got, truth.gradients, strict=True)
    }
    return Errors(errors.output, errors.quantile, errors.worst, errors.from_token, by_name)

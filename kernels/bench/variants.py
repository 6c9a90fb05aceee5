"""Name the variants that stand side by side, and say how each is run.

A variant is written as a word, with its tolerance where it has one: "mesa@0.0001", "torch@0.0001", "shared@0.0001",
"cg@0.0001", "cg-30", "fla", "linear", "softmax". So it travels to another process as a string.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import CaseOperands
from cg_fixed import mesa_fixed_steps
from peer_kernel import STEPS, peer_kernel
from torch import Tensor

from mesalm.model.chunk_states import CHUNK
from mesalm.model.operator_linear import linear_attention
from mesalm.model.operator_mesa import mesa_attention

ALL = ("mesa", "torch", "triton", "shared", "chebyshev", "cg", "cg-30", "fla", "linear", "softmax")
BACKENDS = {"mesa": "auto", "torch": "torch", "triton": "triton"}
"""Variants that are `mesa_attention` itself, and the back end that each asks for."""
METHODS = ("shared", "chebyshev", "cg")
"""Variants that are one method of the torch back end's solver, used everywhere."""
TOLERANT = (*BACKENDS, *METHODS)
"""Variants that stop at a tolerance."""
BASELINES = ("cg-30", "fla")
"""The peer's recipe in torch, and its own kernel on a card."""
QUADRATIC = ("softmax",)
"""Variants whose time grows with the square of the length."""


@dataclass(frozen=True)
class Variant:
    """One way to compute attention: `run(operands)` returns `[B, T, H, V]`.

    solves: whether it computes mesa attention, so that its output has an error. reads: the operands that it reads, by
    place; the others get no gradient.
    """

    name: str
    run: Callable[[CaseOperands], Tensor]
    solves: bool
    reads: tuple[int, ...]
    tolerance: float | None = None


def spell(word: str, tolerances: list[float]) -> list[str]:
    """Write a variant out for each tolerance: "mesa" to "mesa@0.001", "mesa@0.0001"; others as they are.

    Raises ValueError for a variant that does not exist.
    """
    if word not in ALL:
        raise ValueError(f"variant is {word!r}: must be one of {', '.join(ALL)}")
    return [f"{word}@{tolerance:g}" for tolerance in tolerances] if word in TOLERANT else [word]


def find(name: str) -> Variant:
    """Find the variant that `spell` wrote."""
    word, _, tolerance = name.partition("@")
    if word in TOLERANT:
        limit = float(tolerance)
        return Variant(name, lambda operands: _solver(word, operands, limit)[0], True, tuple(range(6)), limit)
    if word == "fla":
        return Variant(name, peer_kernel, True, tuple(range(6)))
    if word in BASELINES:
        return Variant(name, lambda x: mesa_fixed_steps(*x, STEPS), True, tuple(range(6)))
    if word == "linear":
        return Variant(name, lambda operands: linear_attention(*operands[:5]), False, tuple(range(5)))
    if word == "softmax":
        return Variant(name, _attend, False, (0, 1, 2))
    raise ValueError(f"variant is {name!r}: must be one of {', '.join(ALL)}")


def mean_steps(variant: Variant, operands: CaseOperands) -> float | None:
    """Return the mean steps of a solve over chunks and heads, for which the solver runs once; None without a solve."""
    if not variant.solves:
        return None
    if variant.tolerance is None:
        return float(STEPS)
    with torch.no_grad():
        steps = _solver(variant.name.partition("@")[0], operands, variant.tolerance)[1]
    return float(steps.double().mean())


def _solver(word: str, operands: CaseOperands, tolerance: float) -> tuple[Tensor, Tensor]:
    """Run this project's solver; returns output `[B, T, H, V]` and steps `[B, N, H]`."""
    backend, method = (BACKENDS[word], "auto") if word in BACKENDS else ("torch", word)
    output, report = mesa_attention(
        *operands, tolerance=tolerance, return_report="steps", backend=backend, method=method
    )
    return output, report.steps


def backend_of(variant: Variant, operands: CaseOperands) -> str | None:
    """Name the back end that ran a variant which is `mesa_attention` itself; None for the others."""
    word = variant.name.partition("@")[0]
    if word not in BACKENDS:
        return None
    with torch.no_grad():
        short = operands.tokens(0, min(CHUNK, operands.query.shape[1]))
        report = mesa_attention(*short, tolerance=0.1, return_report="steps", backend=BACKENDS[word])[1]
    name: str = report.backend
    return name


def _attend(operands: CaseOperands) -> Tensor:
    """Run torch's causal attention on the same queries, keys and values."""
    query, key, value = (x.transpose(1, 2) for x in operands[:3])
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

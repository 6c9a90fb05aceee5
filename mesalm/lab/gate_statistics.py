"""Numbers that say how hard a trained layer is to solve: gates, memory, ridge, condition numbers, steps.

All of them belong to a key head: the query heads that read it share its state, and their steps are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mesalm.lab.capture import Reading
from mesalm.model.chunk_states import CHUNK

LATE_TOKENS = 8
"""Tokens of each window whose condition number is computed, spread over the window's last quarter."""
SPAN = 1 / 16
"""The decay over a chunk above which one factorisation serves all its tokens well."""
FORGET_EDGES = np.logspace(-5, 2, 57)
"""Borders of the bins of -log gamma, eight a decade; what lies outside counts in the outermost bin."""
INPUT_EDGES = np.linspace(0, 1, 41)
"""Borders of the bins of beta."""


@dataclass(frozen=True)
class HeadNumbers:
    """Hold the numbers of one key head over all windows.

    log_gamma: the 5, 50 and 95 % quantiles; memory: -1 / mean(log gamma) in tokens, None if it never forgets;
    ridge: least, mean, largest; condition, scaled: condition numbers of H_t + ridge and of the form that the solver
    sees, ridge^-1/2 H_t ridge^-1/2 + 1, of each sampled token; steps: mean over chunks of the slowest token's;
    long_chunks: share of the whole 64-token chunks whose decay is above 1/16. Layers that solve nothing have no
    ridge, no condition numbers and no steps. forget_counts, input_counts: tokens in the bins of `FORGET_EDGES`
    (-log gamma) and `INPUT_EDGES` (beta).
    """

    layer: int
    head: int
    mixer: str
    gamma: float
    log_gamma: tuple[float, float, float]
    memory: float | None
    beta: float
    ridge: tuple[float, float, float] | None
    condition: list[float]
    scaled: list[float]
    steps: float | None
    long_chunks: float
    forget_counts: list[int]
    input_counts: list[int]


@dataclass
class LayerSamples:
    """Collect what one layer showed, window by window; each array's last axis is the key head."""

    layer: int
    mixer: str
    gated: bool
    log_forget: list[np.ndarray] = field(default_factory=list)
    input_gate: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    long_chunks: list[np.ndarray] = field(default_factory=list)
    condition: list[np.ndarray] = field(default_factory=list)
    scaled: list[np.ndarray] = field(default_factory=list)
    ridge: np.ndarray | None = None

    def add(self, reading: Reading) -> None:
        """Take in one forward pass of one window, B = 1."""
        log_forget, input_gate = _double(reading.log_forget[0]), _double(reading.input_gate[0])
        self.log_forget.append(log_forget.numpy())
        self.input_gate.append(input_gate.numpy())
        self.long_chunks.append(long_chunks(log_forget).numpy())
        if reading.ridge is None:
            return
        key, ridge = _double(reading.key[0]), _double(reading.ridge)
        self.ridge = ridge.numpy()
        plain, scaled = condition_numbers(key, log_forget, input_gate, ridge, late_tokens(len(key)))
        self.condition.append(plain.numpy())
        self.scaled.append(scaled.numpy())
        if reading.steps is not None:
            by_query_head = _double(reading.steps[0])
            self.steps.append(by_query_head.unflatten(-1, (key.shape[1], -1)).mean(-1).numpy())

    def numbers(self) -> list[HeadNumbers]:
        """Return the numbers of each key head."""
        log_forget, input_gate = np.concatenate(self.log_forget), np.concatenate(self.input_gate)
        return [self._head(head, log_forget[:, head], input_gate[:, head]) for head in range(log_forget.shape[1])]

    def _head(self, head: int, log_forget: np.ndarray, input_gate: np.ndarray) -> HeadNumbers:
        low, middle, high = (float(value) for value in np.quantile(log_forget, (0.05, 0.5, 0.95)))
        mean = float(log_forget.mean())
        ridge = None if self.ridge is None else self.ridge[head]
        forgetting = np.clip(-log_forget, FORGET_EDGES[0], FORGET_EDGES[-1])
        return HeadNumbers(
            layer=self.layer,
            head=head,
            mixer=self.mixer,
            gamma=float(np.exp(log_forget).mean()),
            log_gamma=(low, middle, high),
            memory=-1.0 / mean if mean else None,
            beta=float(input_gate.mean()),
            ridge=None if ridge is None else (float(ridge.min()), float(ridge.mean()), float(ridge.max())),
            condition=[float(value) for window in self.condition for value in window[:, head]],
            scaled=[float(value) for window in self.scaled for value in window[:, head]],
            steps=float(np.concatenate(self.steps)[:, head].mean()) if self.steps else None,
            long_chunks=float(np.concatenate(self.long_chunks)[:, head].mean()),
            forget_counts=np.histogram(forgetting, FORGET_EDGES)[0].tolist(),
            input_counts=np.histogram(input_gate, INPUT_EDGES)[0].tolist(),
        )


def late_tokens(length: int, count: int = LATE_TOKENS) -> list[int]:
    """Return up to `count` places spread over the last quarter of a window, the last token among them."""
    return sorted({round(place) for place in np.linspace(0.75 * (length - 1), length - 1, count)})


def long_chunks(log_forget: Tensor) -> Tensor:
    """Mark whole chunks of log gates `[T, G]` whose decay stays above 1/16: `[T // 64, G]` of 0 and 1, float64."""
    count = len(log_forget) // CHUNK
    span = log_forget[: count * CHUNK].reshape(count, CHUNK, -1).sum(1)
    return (span > math.log(SPAN)).to(torch.float64)


def condition_numbers(
    key: Tensor, log_forget: Tensor, input_gate: Tensor, ridge: Tensor, tokens: list[int]
) -> tuple[Tensor, Tensor]:
    """Compute the condition number of H_t + diag(ridge) at some tokens, and of its ridge-scaled form.

    H_t = sum_{s <= t} exp(log gamma_{s + 1} + ... + log gamma_t) beta_s k_s k_s'. The scaled form is
    ridge^-1/2 H_t ridge^-1/2 + 1, which the solver works on. Both are ratios of eigenvalues.

    Args:
        key: `[T, G, K]`; log_forget, input_gate: `[T, G]`; ridge: `[G, K]`; all float64 on the CPU.
        tokens: places t, S of them.

    Returns two tensors `[S, G]`, float64.
    """
    # far below what counts beside a token's own weight, and no difference of infinities arises
    total = log_forget.clamp(min=-700.0).cumsum(0)
    keys = key.transpose(0, 1)  # [G, T, K]
    root = ridge.sqrt()
    plain, scaled = [], []
    for t in tokens:
        weight = (total[t] - total[: t + 1]).exp() * input_gate[: t + 1]  # [t + 1, G]
        seen = keys[:, : t + 1]
        gram = (seen * weight.T.unsqueeze(-1)).mT @ seen
        plain.append(_condition(gram + torch.diag_embed(ridge)))
        scaled.append(_condition(gram / (root.unsqueeze(-1) * root.unsqueeze(-2)) + torch.eye(key.shape[-1]).double()))
    return torch.stack(plain), torch.stack(scaled)


def _condition(matrix: Tensor) -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(matrix)
    return eigenvalues[..., -1] / eigenvalues[..., 0]


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()  # in this order: some devices have no float64

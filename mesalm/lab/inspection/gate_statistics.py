"""How hard a trained layer is to solve: gates, memory, ridge, condition numbers, steps.

All of them belong to a key head: the query heads that read it share its state, and their steps are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mesalm.lab.inspection.capture import Reading
from mesalm.lab.inspection.late_systems import survey
from mesalm.model.chunk_states import CHUNK
from mesalm.model.mixer_delta import DeltaMixer

LATE_TOKENS = 8
"""Tokens of each window whose condition number is computed, spread over the window's last quarter."""
SPAN = 1 / 16
"""The decay over a chunk above which one factorisation serves all its tokens well."""
FORGET_EDGES = np.logspace(-5, 2, 57)
"""Borders of the bins of -log gamma, eight per decade; values outside count in the outermost bin."""
INPUT_EDGES = np.linspace(0, 1, 41)
"""Borders of the bins of beta."""


@dataclass(frozen=True)
class HeadNumbers:
    """The numbers of one key head over all windows.

    log_gamma: the 5, 50 and 95 % quantiles; memory: -1 / mean(log gamma) in tokens, None if it never forgets; ridge:
    least, mean, largest; condition, scaled: condition numbers of H_t + ridge and of the form that the solver sees,
    ridge^-1/2 H_t ridge^-1/2 + 1, of each sampled token; steps: mean over chunks of the slowest token's; long_chunks:
    share of the whole 64-token chunks whose decay is above 1/16; rank: the effective rank of the keys gathered, and
    dimension: the effective dimension of their ridge regression, means over the sampled tokens (`late_systems`). Layers
    that solve nothing have no ridge, no condition numbers, no dimension and no steps. forget_counts, input_counts:
    tokens in the bins of `FORGET_EDGES` (-log gamma) and `INPUT_EDGES` (beta).
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
    rank: float
    dimension: float | None
    forget_counts: list[int]
    input_counts: list[int]


@dataclass
class LayerSamples:
    """What one layer showed, window by window; each array's last axis is the key head."""

    layer: int
    mixer: str
    gated: bool
    log_forget: list[np.ndarray] = field(default_factory=list)
    input_gate: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    long_chunks: list[np.ndarray] = field(default_factory=list)
    rank: list[np.ndarray] = field(default_factory=list)
    lags: list[Tensor] = field(default_factory=list)
    dimension: list[np.ndarray] = field(default_factory=list)
    condition: list[np.ndarray] = field(default_factory=list)
    scaled: list[np.ndarray] = field(default_factory=list)
    ridge: np.ndarray | None = None

    def add(self, reading: Reading) -> None:
        """Take in one forward pass of one window, B = 1."""
        log_forget, input_gate = _double(reading.log_forget[0]), _double(reading.input_gate[0])
        self.log_forget.append(log_forget.numpy())
        self.input_gate.append(input_gate.numpy())
        self.long_chunks.append(long_chunks(log_forget).numpy())
        query, key = _double(reading.query[0]), _double(reading.key[0])
        ridge = None if reading.ridge is None else _double(reading.ridge)
        corrects = self.mixer == DeltaMixer.name
        late = survey(query, key, log_forget, input_gate, ridge, late_tokens(len(key)), corrects)
        self.rank.append(late.rank.numpy())
        self.lags.append(late.lags)
        if ridge is None:
            return
        assert late.dimension is not None
        assert late.condition is not None
        assert late.scaled is not None
        self.ridge = ridge.numpy()
        self.dimension.append(late.dimension.numpy())
        self.condition.append(late.condition.numpy())
        self.scaled.append(late.scaled.numpy())
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
            rank=float(np.concatenate(self.rank)[:, head].mean()),
            dimension=float(np.concatenate(self.dimension)[:, head].mean()) if self.dimension else None,
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


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()  # in this order: some devices have no float64

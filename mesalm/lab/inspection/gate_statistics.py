"""Statistics that show how hard a trained layer is to solve: gates, memory, ridge, condition numbers, steps.

All are per key head: the query heads that read it share its state, and their steps are averaged.
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
"""Number of tokens per window whose condition number is computed, spread over its last quarter."""
SPAN = 1 / 16
"""The decay over a chunk above which one factorisation works well for all its tokens."""
FORGET_EDGES = np.logspace(-5, 2, 57)
"""Bin edges of -log gamma, eight per decade; values outside count in the outermost bin."""
INPUT_EDGES = np.linspace(0, 1, 41)
"""Bin edges of beta."""


@dataclass(frozen=True)
class HeadNumbers:
    """The numbers of one key head over all windows.

    log_gamma: the 5, 50 and 95 % quantiles; memory: -1 / mean(log gamma) in tokens, None if it never forgets; ridge:
    smallest, mean, largest; condition, scaled: condition numbers of H_t + ridge and of the solver's form,
    ridge^-1/2 H_t ridge^-1/2 + 1, at each sampled token; steps: of each chunk's slowest token, mean over chunks;
    long_chunks: share of full 64-token chunks whose decay is above 1/16; rank: the effective rank of the keys so far,
    and dimension: the effective dimension of their ridge regression, means over the sampled tokens (`survey`). Layers
    without a solver have no ridge, condition numbers, dimension or steps. forget_counts, input_counts: number of tokens
    in the bins of `FORGET_EDGES` (-log gamma) and `INPUT_EDGES` (beta).
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
    """The samples of one layer in each window: float64 tensors by name, with the key head as second axis.

    log_forget, input_gate `[T, G]`; long_chunks `[T // 64, G]`; steps `[N, G]` if the layer has a solver; and those
    of `survey`.
    """

    layer: int
    mixer: str
    ridge: Tensor | None = None
    windows: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, reading: Reading) -> None:
        """Add the samples of one forward pass of one window, B = 1."""
        log_forget, input_gate = _double(reading.log_forget[0]), _double(reading.input_gate[0])
        query, key = _double(reading.query[0]), _double(reading.key[0])
        self.ridge = None if reading.ridge is None else _double(reading.ridge)
        corrects = self.mixer == DeltaMixer.name
        late = survey(query, key, log_forget, input_gate, self.ridge, late_tokens(len(key)), corrects)
        gates = {"log_forget": log_forget, "input_gate": input_gate, "long_chunks": long_chunks(log_forget)}
        if reading.steps is not None:
            late["steps"] = _double(reading.steps[0]).unflatten(-1, (key.shape[1], -1)).mean(-1)
        self.windows.append({**gates, **late})

    def numbers(self) -> list[HeadNumbers]:
        """Return the numbers of each key head."""
        seen = {name: torch.cat([window[name] for window in self.windows]).numpy() for name in self.windows[0]}
        heads = range(seen["log_forget"].shape[1])
        return [self._head(head, {name: values[:, head] for name, values in seen.items()}) for head in heads]

    def _head(self, head: int, seen: dict[str, np.ndarray]) -> HeadNumbers:
        low, middle, high = (float(value) for value in np.quantile(seen["log_forget"], (0.05, 0.5, 0.95)))
        mean = {name: float(values.mean()) for name, values in seen.items()}
        ridge = None if self.ridge is None else self.ridge[head].numpy()
        forgetting = np.clip(-seen["log_forget"], FORGET_EDGES[0], FORGET_EDGES[-1])
        return HeadNumbers(
            layer=self.layer,
            head=head,
            mixer=self.mixer,
            gamma=float(np.exp(seen["log_forget"]).mean()),
            log_gamma=(low, middle, high),
            memory=-1.0 / mean["log_forget"] if mean["log_forget"] else None,
            beta=mean["input_gate"],
            ridge=None if ridge is None else (float(ridge.min()), float(ridge.mean()), float(ridge.max())),
            condition=seen["condition"].tolist() if "condition" in seen else [],
            scaled=seen["scaled"].tolist() if "scaled" in seen else [],
            steps=mean.get("steps"),
            long_chunks=mean["long_chunks"],
            rank=mean["rank"],
            dimension=mean.get("dimension"),
            forget_counts=np.histogram(forgetting, FORGET_EDGES)[0].tolist(),
            input_counts=np.histogram(seen["input_gate"], INPUT_EDGES)[0].tolist(),
        )


def late_tokens(length: int, count: int = LATE_TOKENS) -> list[int]:
    """Return up to `count` positions spread over the last quarter of a window, including the last token."""
    return sorted({round(place) for place in np.linspace(0.75 * (length - 1), length - 1, count)})


def long_chunks(log_forget: Tensor) -> Tensor:
    """Mark full chunks of log gates `[T, G]` whose decay is above 1/16: `[T // 64, G]` of 0 and 1, float64."""
    count = len(log_forget) // CHUNK
    span = log_forget[: count * CHUNK].reshape(count, CHUNK, -1).sum(1)
    return (span > math.log(SPAN)).to(torch.float64)


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()  # in this order: some devices have no float64

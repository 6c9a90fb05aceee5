"""Resample units (documents, windows, queries) with replacement, the same units for every model.

Every statistic here is a mean over columns of sum(a) / sum(b), sums over units; a mean is the case of one column and
b = 1. Bits per byte is sum(bits) / sum(bytes): documents are drawn, never tokens, so long documents bring all their
tokens along. The draws depend on the number of units and the seed alone: statistics over the same units are paired, and
the difference of two models or the mean over training seeds is that of their draws (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapters 13 and 14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mesa_eval.uncertainty.intervals import LEVEL, Interval

DRAWS = 10_000
Transform = Callable[[np.ndarray], np.ndarray]
Seed = int | tuple[int, ...]
KEPT_COUNTS = 20_000_000  # counts of at most so many units times draws are kept for the next statistic: 40 MB
CHUNK_NUMBERS = 4_000_000  # counts held as float64 at once: 32 MB


@dataclass(frozen=True)
class Resampled:
    """Hold a statistic with its value in each draw: [draws], or None where one unit leaves nothing to resample."""

    value: float
    drawn: np.ndarray | None
    units: int

    def __sub__(self, other: Resampled) -> Resampled:
        """Return the paired difference of two statistics over the same units, drawn with the same seed."""
        if self.units != other.units:
            raise ValueError(f"{self.units} and {other.units} units cannot be paired; both models need the same")
        drawn = None if self.drawn is None or other.drawn is None else self.drawn - other.drawn
        return Resampled(self.value - other.value, drawn, self.units)

    @property
    def spread(self) -> float:
        """Return the standard deviation over the draws; 0 without any."""
        here = self._finite()
        return float(here.std()) if len(here) else 0.0

    def interval(self) -> Interval:
        """Return the 95 % percentile interval and the two-sided bootstrap p value against 0."""
        here = self._finite()
        if not len(here):
            return Interval(self.value, None, None, None, self.units)
        low, high = (float(q) for q in np.quantile(here, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        tail = min(np.count_nonzero(here >= 0), np.count_nonzero(here <= 0))
        p = min(1.0, 2 * (tail + 1) / (len(here) + 1))
        return Interval(self.value, low, high, float(p), self.units)

    def _finite(self) -> np.ndarray:
        return np.empty(0) if self.drawn is None else self.drawn[np.isfinite(self.drawn)]


def resample(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Transform | None = None,
    draws: int = DRAWS,
    seed: Seed = 0,
) -> Resampled:
    """Resample the mean over columns of sum(numerator) / sum(denominator), both [U, C].

    `transform`, such as `numpy.exp` for a perplexity, is applied to the mean. A column whose denominator sums to 0,
    such as a class that a draw does not hold, is left out of it.
    """
    apply = transform or np.asarray
    both = np.concatenate([numerator, denominator], axis=1, dtype=float)
    units, columns = numerator.shape

    def statistic(sums: np.ndarray) -> np.ndarray:
        return apply(_mean_ratio(sums[..., :columns], sums[..., columns:]))

    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(both.sum(0)))
        drawn = statistic(resampled_sums(both, draws, seed)) if units > 1 else None
    return Resampled(value, drawn, units)


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """Return the mean of statistics draw by draw: over training seeds (the same units), or over tasks (other seeds)."""
    drawn = [part.drawn for part in parts if part.drawn is not None]
    value = float(np.mean([part.value for part in parts]))
    units = min(part.units for part in parts)
    return Resampled(value, np.mean(drawn, axis=0) if len(drawn) == len(parts) else None, units)


def resampled_sums(values: np.ndarray, draws: int = DRAWS, seed: Seed = 0) -> np.ndarray:
    """Draw U of U units with replacement `draws` times and sum each column: [U, C] -> [draws, C].

    All columns of one draw share its units, which is what pairs models, bins and shots.
    """
    units = len(values)
    drawn = _kept_counts if units * draws <= KEPT_COUNTS else _counts
    return np.concatenate([counts.astype(float) @ values for counts in drawn(units, draws, seed)])


def _counts(units: int, draws: int, seed: Seed) -> Iterator[np.ndarray]:
    """Yield how often each unit is taken in each draw, [draws, units], in chunks of draws."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK_NUMBERS // max(1, units))
    for begin in range(0, draws, step):
        rows = min(step, draws - begin)
        picks = generator.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
        counts = np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units)
        yield counts.astype(np.uint16 if units < 2**16 else np.uint32)


@lru_cache(maxsize=2)
def _kept_counts(units: int, draws: int, seed: Seed) -> tuple[np.ndarray, ...]:
    return tuple(_counts(units, draws, seed))


def group_sums(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Sum the rows of [N, C] that belong to the same group; return [U, C] and the groups' names in order."""
    names = list(dict.fromkeys(groups))
    index = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, [index[group] for group in groups], values)
    return sums, names


def effective_units(denominator: np.ndarray) -> float:
    """Return Kish's effective number of units, (sum b)^2 / sum b^2 over their weights b: [U, C] summed over columns.

    It is how many units of one size would tell as much; a few long documents among short ones count for little more
    than the few (Kish 1965, Survey Sampling). 0 where nothing has weight.
    """
    weights = denominator.sum(1)
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of the ratios whose denominator is not 0; NaN where there is none."""
    there = denominator != 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=there)
    return ratios.sum(-1) / there.sum(-1)

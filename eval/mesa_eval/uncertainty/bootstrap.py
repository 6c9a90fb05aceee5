"""Bootstrap over units (documents, windows, queries), resampling the same units for every model.

Every statistic here is a mean over columns of sum(a) / sum(b), with sums over units; a plain mean has one column and
b = 1. Bits per byte is sum(bits) / sum(bytes): documents are resampled, never tokens, so each drawn document brings all
its tokens. The draws depend only on the number of units and the seed, so statistics over the same units are paired.
Differences between models and means over training seeds are computed draw by draw (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapters 13 and 14).

The plain percentile interval is too narrow for few units: its variance lacks the factor n / (n - 1), and its ends lack
the heavier tails of Student's t. The percentiles are therefore taken further out, at the normal tail probability of
sqrt(n / (n - 1)) t_{n - 1} (Hesterberg 2015, What Teachers Should Know About the Bootstrap). The p value is that of
Student's t with the bootstrap standard error: p values from the tail of the draws are several times too small in the
far tail, which corrections for many tests depend on. For units of unequal weight, n is their effective number,
(sum w)^2 / sum w^2 (Kish 1965, Survey Sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mesa_eval.uncertainty.intervals import LEVEL, ROUNDING, Interval, joint_interval, p_without_spread
from mesa_eval.uncertainty.student import critical, tail

DRAWS = 10_000
Transform = Callable[[np.ndarray], np.ndarray]
Seed = int | tuple[int, ...]
KEPT_COUNTS = 20_000_000  # counts are cached for the next statistic up to this many units times draws: 40 MB
CHUNK_NUMBERS = 4_000_000  # counts in memory as float64 at once: 32 MB


@dataclass(frozen=True)
class Resampled:
    """A statistic and its value in each bootstrap draw, [draws], or None if a single unit cannot be resampled.

    effective: the effective number of units (see `effective_units`); None if all weights are equal.
    """

    value: float
    drawn: np.ndarray | None
    units: int
    effective: float | None = None

    def __sub__(self, other: Resampled) -> Resampled:
        """Return the paired difference of two statistics over the same units, drawn with the same seed."""
        if self.units != other.units:
            raise ValueError(f"{self.units} and {other.units} units cannot be paired; both models need the same")
        drawn = None if self.drawn is None or other.drawn is None else self.drawn - other.drawn
        return Resampled(self.value - other.value, drawn, self.units, min(self.weighed, other.weighed))

    @property
    def weighed(self) -> float:
        """Return the effective number of units, at least 2 if there are two units or more."""
        return max(min(2.0, self.units), self.units if self.effective is None else self.effective)

    @property
    def variance(self) -> float:
        """Return the variance of the statistic: that of the draws times n / (n - 1)."""
        return self.spread**2 * self.weighed / (self.weighed - 1) if self.units > 1 else 0.0

    @property
    def spread(self) -> float:
        """Return the standard deviation over the draws; 0 if there are none."""
        here = self._finite()
        return float(here.std()) if len(here) else 0.0

    def interval(self) -> Interval:
        """Return the 95 % percentile interval, widened for few units, with the p value against 0."""
        here = self._finite()
        if not len(here):
            return Interval(self.value, None, None, None, self.units, effective=self.weighed)
        freedom = self.weighed - 1
        outside = math.erfc(critical(LEVEL, freedom) * math.sqrt(self.weighed / freedom / 2)) / 2
        low, high = (float(q) for q in np.quantile(here, [outside, 1 - outside]))
        error = math.sqrt(self.variance)
        spread = error > ROUNDING * abs(self.value)
        p = tail(self.value / error, freedom) if spread else p_without_spread(self.value, self.weighed)
        return Interval(self.value, low, high, p, self.units, effective=self.weighed)

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

    `transform`, such as `numpy.exp` for a perplexity, is applied to the mean. The mean leaves out columns whose
    denominator sums to 0, such as a class that is missing from a draw.
    """
    apply = transform or np.asarray
    both = np.concatenate([numerator, denominator], axis=1, dtype=float)
    units, columns = numerator.shape

    def statistic(sums: np.ndarray) -> np.ndarray:
        return apply(_mean_ratio(sums[..., :columns], sums[..., columns:]))

    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(both.sum(0)))
        drawn = statistic(resampled_sums(both, draws, seed)) if units > 1 else None
    return Resampled(value, drawn, units, effective_units(both[:, columns:]))


def effective_units(weights: np.ndarray) -> float:
    """Return Kish's effective number of units, (sum w)^2 / sum w^2 of their weights [U, C]; columns count equally.

    It is the number of equally weighted units that would be as informative: a few long documents among many short
    ones count for little more than the long ones alone (Kish 1965, Survey Sampling).
    """
    there = weights[:, weights.sum(0) > 0]
    mean = (there / there.sum(0)).mean(1) if there.size else np.ones(len(weights))
    return float(mean.sum() ** 2 / (mean**2).sum())


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """Average statistics draw by draw: over training seeds (same units) or over tasks (different bootstrap seeds)."""
    drawn = [part.drawn for part in parts if part.drawn is not None]
    value = float(np.mean([part.value for part in parts]))
    units = min(part.units for part in parts)
    effective = min(part.weighed for part in parts)
    return Resampled(value, np.mean(drawn, axis=0) if len(drawn) == len(parts) else None, units, effective)


def seeds_and_units(parts: Sequence[Resampled]) -> Interval:
    """Return the mean of a statistic over training seeds (same units), with an interval for new seeds and new units.

    Part of the variance b^2 of the mean over units is noise of neither seed nor unit, which averages out over n seeds
    and is also part of the spread over seeds. It is estimated as (mean of the seeds' b_s^2 - b^2) / (n - 1) and counted
    once. If the seeds have no spread, as is common for scores with few values, it is not subtracted.
    """
    mean, values = mean_of(parts), [part.value for part in parts]
    rest = (float(np.mean([part.variance for part in parts])) - mean.variance) / max(1, len(parts) - 1)
    held = rest if float(np.std(values)) > ROUNDING * abs(mean.value) else 0.0
    return joint_interval(values, max(0.0, mean.variance - held), mean.weighed)


def resampled_sums(values: np.ndarray, draws: int = DRAWS, seed: Seed = 0, kept: int = KEPT_COUNTS) -> np.ndarray:
    """Draw U of U units with replacement `draws` times and sum each column: [U, C] -> [draws, C].

    All columns of one draw share its units, which pairs models, bins and shots. The counts are cached for the next
    statistic if units times draws is at most `kept`.
    """
    units = len(values)
    drawn = _kept_counts if units * draws <= kept else _counts
    return np.concatenate([counts.astype(float) @ values for counts in drawn(units, draws, seed)])


def _counts(units: int, draws: int, seed: Seed) -> Iterator[np.ndarray]:
    """Yield the number of times each unit appears in each draw, [draws, units], in chunks of draws."""
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
    """Sum the rows of [N, C] within each group; return [U, C] and the group names in order."""
    names = list(dict.fromkeys(groups))
    index = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, [index[group] for group in groups], values)
    return sums, names


def _mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of the ratios with a nonzero denominator; NaN where all are zero."""
    there = denominator != 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=there)
    return ratios.sum(-1) / there.sum(-1)

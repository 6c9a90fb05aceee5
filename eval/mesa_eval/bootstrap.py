"""Percentile intervals by resampling units (documents, windows, queries), paired across models.

Every statistic here is a ratio of sums over units, sum(a) / sum(b); a mean is the case b = 1. Bits per byte is
sum(bits) / sum(bytes): documents are drawn, never tokens, so long documents bring all their tokens along.
A difference of two models draws the same units for both (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapters 13 and 14).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
FEW_UNITS = 10  # below this a percentile interval is known to be too narrow; reports say so
Transform = Callable[[np.ndarray], np.ndarray]
CHUNK_NUMBERS = 4_000_000  # counts held at once: 32 MB of float64


@dataclass(frozen=True)
class Interval:
    """Hold an estimate with its 95 % percentile interval and a two-sided bootstrap p value against 0.

    `low`, `high` and `p` are None when fewer than two units leave nothing to resample.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    units: int

    @property
    def tells(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resampled_sums(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draw U of U units with replacement `draws` times and sum each column: [U, C] -> [draws, C].

    All columns of one draw share its units, which is what pairs models, bins and shots.
    """
    units = len(values)
    generator = np.random.default_rng(seed)
    sums = np.empty((draws, values.shape[1]))
    step = max(1, CHUNK_NUMBERS // max(1, units))
    for begin in range(0, draws, step):
        rows = min(step, draws - begin)
        picks = generator.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
        counts = np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units)
        sums[begin : begin + rows] = counts.astype(float) @ values
    return sums


def ratio_intervals(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Transform | None = None,
    average: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """Return the interval of sum(numerator) / sum(denominator) for each column of [U, C] arrays.

    `transform`, such as `numpy.exp` for a perplexity, is applied to the ratio. With `average` there is one interval,
    that of the mean over the columns (macro-F1 has a column a class); a column whose denominator sums to 0, such as a
    class that a draw does not hold, is left out of the mean.
    """
    columns = numerator.shape[1]
    both = np.concatenate([numerator, denominator], axis=1)
    sums = resampled_sums(both, draws, seed) if len(both) > 1 else None
    return _intervals(both.sum(0), sums, columns, len(both), paired=False, transform=transform, average=average)


def paired_intervals(
    numerator: np.ndarray,
    denominator: np.ndarray,
    base_numerator: np.ndarray,
    base_denominator: np.ndarray,
    *,
    transform: Transform | None = None,
    average: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """Return the interval of a model's ratio less the base model's, units paired; see `ratio_intervals`."""
    if not len(numerator) == len(base_numerator) == len(denominator) == len(base_denominator):
        raise ValueError("paired_intervals: both models need the same units in the same order")
    columns = numerator.shape[1]
    both = np.concatenate([numerator, denominator, base_numerator, base_denominator], axis=1)
    sums = resampled_sums(both, draws, seed) if len(both) > 1 else None
    return _intervals(both.sum(0), sums, columns, len(both), paired=True, transform=transform, average=average)


def group_sums(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Sum the rows of [N, C] that belong to the same group; return [U, C] and the groups' names in order."""
    names = list(dict.fromkeys(groups))
    index = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, [index[group] for group in groups], values)
    return sums, names


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the given order (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def _intervals(
    totals: np.ndarray,
    sums: np.ndarray | None,
    columns: int,
    units: int,
    *,
    paired: bool,
    transform: Transform | None,
    average: bool,
) -> list[Interval]:
    apply = transform or np.asarray

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return apply(_mean_ratio(numerator, denominator) if average else numerator / denominator)

    def statistic(table: np.ndarray) -> np.ndarray:
        parts = np.split(table, table.shape[-1] // columns, axis=-1)
        return ratio(parts[0], parts[1]) - ratio(parts[2], parts[3]) if paired else ratio(parts[0], parts[1])

    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(totals)
        drawn = statistic(sums) if sums is not None else None
    result = []
    for column in range(values.shape[-1]):
        low = high = p = None
        if drawn is not None:
            here = drawn[np.isfinite(drawn[:, column]), column]
            if len(here):
                low, high = (float(q) for q in np.quantile(here, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
                tail = min(np.count_nonzero(here >= 0), np.count_nonzero(here <= 0))
                p = float(min(1.0, 2 * (tail + 1) / (len(here) + 1)))
        result.append(Interval(float(values[column]), low, high, p, units))
    return result


def _mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, kept, of the ratios whose denominator is not 0; NaN where there is none."""
    there = denominator != 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=there)
    return ratios.sum(-1, keepdims=True) / there.sum(-1, keepdims=True)

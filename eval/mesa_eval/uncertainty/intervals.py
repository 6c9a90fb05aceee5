"""Intervals and tests that need no resampling: over training seeds, over seeds and units together, and Holm's.

A difference between two recipes varies with the training seed and with the items asked. Over n seeds, paired by seed,
the mean difference has Student's t interval with n - 1 degrees of freedom; it speaks of these items. A percentile
bootstrap over so few seeds would cover too little and is not used. Both sources together:

    variance = s^2 / n + b^2        degrees of freedom = min(n, U) - 1

with s the standard deviation over the seeds, b that of the bootstrap of the mean over seeds, and U units. What is left
over when seed and unit are known is counted twice, and the degrees of freedom are the least they can be, so it errs to
the wide side and never tells what the seeds alone do not. (Satterthwaite's degrees of freedom, tried, gave 90 %
intervals for two seeds and could undercut the interval over seeds alone.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesa_eval.uncertainty.student import critical, tail

LEVEL = 0.95
FEW_UNITS = 10  # effective units (`effective_units`) below which a percentile interval is too narrow; reports say so


@dataclass(frozen=True)
class Interval:
    """Hold an estimate with its 95 % interval and a two-sided p value against 0.

    `low`, `high` and `p` are None when fewer than two units leave nothing to tell the spread by. `units` counts what
    was resampled, or the training seeds of a t interval; `freedom` are the degrees of freedom of a t interval.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    units: int
    freedom: int | None = None

    @property
    def tells(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values, such as one a training seed, with Student's t interval."""
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, None, None, count)
    return _student(float(np.mean(values)), float(np.var(values, ddof=1)) / count, count - 1, count)


def paired_t(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Return the mean difference of values paired by training seed, with Student's t interval."""
    if len(values) != len(base):
        raise ValueError(f"paired_t: {len(values)} and {len(base)} values given; every value needs its partner")
    return t_interval([value - other for value, other in zip(values, base, strict=True)])


def joint_interval(values: Sequence[float], spread: float, units: int) -> Interval:
    """Return the mean of one value a seed with an interval for new seeds and new units together.

    values: one difference a training seed. spread: the bootstrap's standard deviation of their mean over `units`
    units. With fewer than two seeds or units there is no interval.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2 or units < 2:
        return Interval(mean, None, None, None, min(count, units))
    seeds = float(np.var(values, ddof=1)) / count
    items = spread**2 * units / (units - 1)  # the bootstrap divides by U where an unbiased variance divides by U - 1
    return _student(mean, seeds + items, min(count, units) - 1, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the given order (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def _student(mean: float, variance: float, freedom: int, count: int) -> Interval:
    error = math.sqrt(variance)
    if error == 0:
        return Interval(mean, mean, mean, float(mean == 0), count, freedom)
    half = critical(LEVEL, freedom) * error
    return Interval(mean, mean - half, mean + half, tail(mean / error, freedom), count, freedom)

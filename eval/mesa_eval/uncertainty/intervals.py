"""Intervals and tests without resampling: over training seeds, over seeds and units jointly, and Holm's correction.

A difference between two recipes varies with the training seed and with the test items. Over n seeds, paired by seed,
the mean difference gets Student's t interval with n - 1 degrees of freedom, which holds for these items only. A
percentile bootstrap over so few seeds would undercover and is not used. For both sources of variation together:

    variance = s^2 / n + u      1 / degrees of freedom = w / (n - 1) + (1 - w) / (U - 1)      w = s^2 / n / variance

where s is the standard deviation over the seeds, u the variance of their mean over the U units minus the part already
in s (see `mesa_eval.uncertainty.bootstrap.seeds_and_units`), and w the seeds' share. If this is narrower than the
interval over the seeds alone, the latter is used: new items in addition to new seeds can only add uncertainty. The
coverage of this rule and of the alternatives (Satterthwaite's degrees of freedom, Cochran's weighted t, half-widths in
quadrature) was simulated; see docs/reports.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mesa_eval.uncertainty.student import critical, tail

LEVEL = 0.95
ROUNDING = 1e-12  # a spread below this fraction of the value is rounding error
FEW_UNITS = 10  # below this many effective units the coverage of intervals is not validated; reports warn


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and a two-sided p value against 0.

    `low`, `high` and `p` are None for fewer than two units, which give no estimate of the spread. `units` is the number
    of resampled units, or of training seeds for a t interval; `freedom` is the degrees of freedom of a t interval;
    `effective` is the effective number of resampled units, None for a t interval.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    units: int
    freedom: float | None = None
    effective: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values, such as one per training seed, with Student's t interval."""
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None, None, None, count)
    return _student(float(np.mean(values)), float(np.var(values, ddof=1)) / count, count - 1, count)


def paired_t(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Return the mean difference of values paired by training seed, with Student's t interval."""
    return t_interval([value - other for value, other in zip(values, base, strict=True)])


def joint_interval(values: Sequence[float], items: float, units: float) -> Interval:
    """Return the mean of one value per seed with a joint interval for new seeds and new units.

    values: one difference per training seed. items: the variance of their mean over the units, without the noise that
    is already part of the spread over seeds. units: the effective number of units. With fewer than two seeds or units
    there is no interval.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2 or units < 2:
        return Interval(mean, None, None, None, count)
    alone = t_interval(values)
    seeds = float(np.var(values, ddof=1)) / count
    share = seeds / (seeds + items) if items else 1.0
    freedom = 1 / (share / (count - 1) + (1 - share) / (units - 1))
    both = _student(mean, seeds + items, freedom, count)
    wider = max(alone, both, key=lambda interval: (interval.high or 0.0) - (interval.low or 0.0))
    if math.sqrt(seeds) <= ROUNDING * abs(mean):  # seeds that agree to the last digit give no estimate of spread
        return replace(wider, p=both.p if items else p_without_spread(mean, max(count, units)))
    return replace(wider, p=max(alone.p or 0.0, both.p or 0.0))


def p_without_spread(value: float, units: float) -> float:
    """Return the two-sided p value of the mean of identical values: the sign test's 2 / 2^units, or 1 for a zero mean.

    A t test with zero spread would give p = 0 even for two queries, whose answers often agree by chance.
    """
    return 2.0 ** (1 - units) if value else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's step-down procedure, in the given order (Holm 1979)."""
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(p_values)[order]))
    return adjusted.tolist()


def _student(mean: float, variance: float, freedom: float, count: int) -> Interval:
    error = math.sqrt(variance)
    if error <= ROUNDING * abs(mean):
        return Interval(mean, mean, mean, p_without_spread(mean, count), count, freedom)
    half = critical(LEVEL, freedom) * error
    return Interval(mean, mean - half, mean + half, tail(mean / error, freedom), count, freedom)

"""Student's t, paired over training seeds, seeds and units together, and Holm: tables, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesa_eval.uncertainty.bootstrap import mean_of, resample, seeds_and_units
from mesa_eval.uncertainty.intervals import holm, joint_interval, paired_t, t_interval
from mesa_eval.uncertainty.student import critical, tail

# two-sided 95 % and 99 % points, as printed in any table of Student's t
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 4: (2.776, 4.604), 9: (2.262, 3.250), 30: (2.042, 2.750)}


@pytest.mark.parametrize("freedom", TABLE)
def test_critical_points_are_those_of_the_table(freedom: int) -> None:
    for level, point in zip((0.95, 0.99), TABLE[freedom], strict=True):
        assert critical(level, freedom) == pytest.approx(point, abs=5.1e-4)  # three decimals printed
        assert tail(critical(level, freedom), freedom) == pytest.approx(1 - level, rel=1e-12)


def test_two_closed_forms() -> None:
    for t in (0.01, 0.7, 3.0, 250.0):
        assert tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-10)
        assert tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert (tail(0, 3), tail(math.inf, 3)) == (1.0, 0.0)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 60), st.floats(0.3, 1e5))
def test_tails_are_scipys(t: float, freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with the extra eval")
    # lgamma of 5e4 has 12 good digits, which is what the ratio of gamma functions keeps
    assert tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9, abs=1e-290)
    assert tail(-t, freedom) == tail(t, freedom)


def test_paired_t_by_hand() -> None:
    # differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3), 2 degrees of freedom
    interval = paired_t([11.0, 5.0, 8.0], [10.0, 3.0, 5.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (interval.value, interval.units, interval.freedom) == (2.0, 3, 2)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half))
    t = 2 * math.sqrt(3)
    assert interval.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert not interval.excludes_zero  # three seeds that agree this far are not enough


def test_paired_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with the extra eval")
    generator = np.random.default_rng(0)
    own, base = generator.normal(0.3, 1, 7), generator.normal(size=7)
    found = stats.ttest_rel(own, base)
    interval = paired_t(own.tolist(), base.tolist())
    assert interval.p == pytest.approx(found.pvalue)
    assert (interval.low, interval.high) == pytest.approx(tuple(found.confidence_interval(0.95)))


def test_one_seed_and_equal_seeds() -> None:
    alone = t_interval([3.0])
    assert (alone.value, alone.low, alone.p, alone.excludes_zero) == (3.0, None, None, False)
    same = paired_t([1.0, 2.0], [1.0, 2.0])
    assert (same.value, same.low, same.high, same.p, same.excludes_zero) == (0.0, 0.0, 0.0, 1.0, False)


def test_joint_interval_by_hand() -> None:
    # s^2 / n = 4 / 4 = 1 of 5 in all; 1 / freedom = 0.2 / 3 + 0.8 / 40
    values = [10 - math.sqrt(6), 10.0, 10.0, 10 + math.sqrt(6)]
    assert np.var(values, ddof=1) == pytest.approx(4)
    interval = joint_interval(values, 4.0, 41)
    freedom = 1 / (0.2 / 3 + 0.8 / 40)
    assert (interval.value, interval.units) == (10.0, 4)
    assert interval.freedom == pytest.approx(freedom)
    assert interval.high - interval.value == pytest.approx(critical(0.95, freedom) * math.sqrt(5))
    assert interval.p == pytest.approx(tail(10, 3))  # of the seeds alone, which is the larger


def test_joint_interval_holds_both_sources() -> None:
    seeds = [0.1, 0.3, 0.2]
    only_seeds, alone = joint_interval(seeds, 0.0, 50), t_interval(seeds)
    assert (only_seeds.low, only_seeds.high, only_seeds.p) == pytest.approx((alone.low, alone.high, alone.p))
    wider = joint_interval(seeds, 0.05, 50)
    assert wider.low < alone.low < alone.high < wider.high
    little = joint_interval(seeds, 0.0005, 50)  # more freedom would undercut what the seeds say
    assert (little.low, little.high) == (alone.low, alone.high)
    assert joint_interval([0.2], 0.05, 50).low is None
    assert joint_interval(seeds, 0.0, 1).low is None


def test_what_is_of_neither_seed_nor_unit_is_counted_once() -> None:
    """Without any effect of seed or unit the interval is that of the seeds, not 1.4 times as wide."""
    generator = np.random.default_rng(3)
    table = generator.normal(size=(5, 400))
    parts = [resample(row[:, None], np.ones((400, 1))) for row in table]
    items = mean_of(parts).variance
    assert items == pytest.approx(1 / 2000, rel=0.15)
    together, alone = seeds_and_units(parts), t_interval([part.value for part in parts])
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, 0.9, 0.5]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([]) == []


def test_seeds_without_spread_are_judged_by_their_number_and_their_units() -> None:
    assert paired_t([0.9, 0.7], [0.8, 0.6]).p == 0.5  # equal but for rounding
    assert t_interval([0.0, 0.0, 0.0]).p == 1
    assert joint_interval([1.0, 1.0], 0.0, 2).p == 0.5
    assert joint_interval([1.0, 1.0], 0.0, 30).p == pytest.approx(2**-29)
    # one difference for all seeds: units alone decide
    assert joint_interval([1.0, 1.0], 0.04, 30).p == pytest.approx(tail(5.0, 29))


def test_seeds_that_are_right_as_often_on_other_queries_are_no_proof() -> None:
    """Both seeds differ by 3 of 30 queries, on other queries each: by chance there is no spread over seeds."""
    queries, ones = np.zeros((2, 30, 1)), np.ones((30, 1))
    queries[0, :6], queries[0, 6:9] = 1, -1
    queries[1, 12:18], queries[1, 18:21] = 1, -1
    parts = [resample(own, ones, draws=2000) for own in queries]
    both, units = seeds_and_units(parts), mean_of(parts).interval()
    assert both.value == pytest.approx(0.1)
    assert both.p == pytest.approx(units.p, rel=0.05)
    assert both.p > 0.1
    assert both.low < 0 < both.high

"""Intervals that cover what they test, and pairing that narrows them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mesa_eval.measures.suites import find_suite
from mesa_eval.uncertainty.bootstrap import effective_units, group_sums, mean_of, resample, resampled_sums
from mesa_eval.uncertainty.intervals import FEW_UNITS, Interval


def alone(numerator: np.ndarray, denominator: np.ndarray, **options: object) -> Interval:
    return resample(numerator, denominator, **options).interval()


def paired(own: np.ndarray, size: np.ndarray, base: np.ndarray, base_size: np.ndarray, **options: object) -> Interval:
    return (resample(own, size, **options) - resample(base, base_size, **options)).interval()


def test_the_interval_of_a_ratio_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        sizes = generator.integers(50, 500, 60).astype(float)
        totals = sizes * generator.normal(2.0, 0.3, 60)
        interval = alone(totals[:, None], sizes[:, None], draws=600, seed=trial)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 2.0 <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_effective_number_of_units() -> None:
    assert effective_units(np.full((40, 1), 7.0)) == pytest.approx(40)
    assert effective_units(np.array([[3.0], [1.0], [0.0]])) == pytest.approx(16 / 10)
    assert effective_units(np.array([[2.0, 1.0], [0.0, 1.0]])) == pytest.approx(16 / 10)
    assert effective_units(np.zeros((3, 1))) == 3


# books of 90 to 440 kB, two speeches, and 106 shorter documents: half of the bytes in four of them
SIZES = np.concatenate([np.geomspace(90e3, 440e3, 7), [40e3, 40e3], np.geomspace(280, 12e3, 106)])


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quick", "full", "paper", None])
def test_intervals_cover_whether_documents_are_capped_or_not(suite: str | None) -> None:
    """Draw bits per byte of 115 documents; 2,000 trials have a standard error of 0.5 points at 95 %."""
    sizes = SIZES if suite is None else np.minimum(SIZES, find_suite(suite).document_bytes)
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(2000):
        bits = sizes * generator.normal(2.0, 0.3, len(sizes))
        interval = alone(bits[:, None], sizes[:, None], draws=800, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    assert 0.93 <= covered / 2000 <= 0.97
    assert (effective_units(sizes[:, None]) < FEW_UNITS) == (suite is None)


def test_pairing_takes_out_what_units_have_in_common() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(2.0, 1.0, (200, 1))
    ones = np.ones_like(hard)
    other = hard - 0.05 + generator.normal(0, 0.02, hard.shape)
    difference = paired(other, ones, hard, ones)
    assert difference.excludes_zero
    assert difference.value == pytest.approx((other - hard).mean())
    assert difference.high - difference.low < 0.01
    wide = alone(hard, ones)
    assert wide.high - wide.low > 0.2
    shuffled = other[generator.permutation(200)]
    broken = paired(shuffled, ones, hard, ones)
    assert not broken.excludes_zero


def test_units_are_weighted_by_their_size() -> None:
    interval = alone(np.array([[10.0], [1.0]]), np.array([[10.0], [2.0]]))
    assert interval.value == pytest.approx(11 / 12)
    assert interval.low == pytest.approx(0.5)
    assert interval.high == pytest.approx(1.0)


def test_columns_share_their_draws_and_seeds_repeat() -> None:
    values = np.random.default_rng(2).normal(size=(30, 1))
    sums = resampled_sums(np.concatenate([values, 2 * values, np.ones_like(values)], 1), 500, seed=7)
    np.testing.assert_allclose(sums[:, 1], 2 * sums[:, 0])
    np.testing.assert_allclose(sums[:, 2], 30)
    np.testing.assert_allclose(sums[:, :1], resampled_sums(values, 500, seed=7), atol=1e-12)
    assert sums[:, 0].std() == pytest.approx(values.std() * 30**0.5, rel=0.1)


def test_a_transform_is_applied_to_the_ratio() -> None:
    nats, tokens = np.array([[30.0], [50.0], [44.0]]), np.array([[10.0], [20.0], [18.0]])
    plain = alone(nats, tokens)
    raised = alone(nats, tokens, transform=np.exp)
    assert raised.value == pytest.approx(np.exp(plain.value))
    assert raised.low == pytest.approx(np.exp(plain.low), rel=1e-6)
    difference = paired(nats, tokens, nats * 0.9, tokens, transform=np.exp)
    assert difference.value == pytest.approx(np.exp(plain.value) - np.exp(0.9 * plain.value))


def test_the_mean_over_columns_leaves_out_what_is_not_there() -> None:
    # by hand: class 0 has F1 2/3, class 1 has 2/4, class 2 neither occurs nor is named
    numerator = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    denominator = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    interval = alone(numerator, denominator)
    assert interval.value == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert (interval.low, interval.high) == (0.0, 1.0)
    difference = paired(numerator, denominator, numerator, denominator)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_one_unit_has_no_interval() -> None:
    interval = alone(np.array([[3.0]]), np.array([[2.0]]))
    assert (interval.value, interval.low, interval.p, interval.excludes_zero) == (1.5, None, None, False)


def test_equal_models_differ_by_nothing() -> None:
    values = np.random.default_rng(3).normal(size=(40, 2))
    interval = paired(values, np.ones_like(values), values.copy(), np.ones_like(values))
    assert (interval.value, interval.low, interval.high, interval.excludes_zero, interval.p) == (0, 0, 0, False, 1.0)


def test_numerators_and_sizes_stay_together() -> None:
    sizes = np.arange(1.0, 31.0)[:, None]
    interval = paired(3 * sizes, sizes, 2 * sizes[::-1], sizes[::-1])
    assert (interval.value, interval.low, interval.high) == pytest.approx((1, 1, 1))


def test_units_must_match() -> None:
    with pytest.raises(ValueError, match="2 and 3 units cannot be paired"):
        paired(np.ones((2, 1)), np.ones((2, 1)), np.ones((3, 1)), np.ones((3, 1)))


def test_many_units_are_drawn_like_few() -> None:
    values = np.random.default_rng(4).normal(size=(50, 2))
    kept = resampled_sums(values, 300, seed=(1, 2))
    np.testing.assert_array_equal(resampled_sums(values, 300, seed=(1, 2), kept=0), kept)
    assert not np.array_equal(resampled_sums(values, 300, seed=(1, 3)), kept)


def test_the_mean_over_seeds_is_that_of_the_draws() -> None:
    generator = np.random.default_rng(5)
    shared, ones = generator.normal(size=(60, 1)), np.ones((60, 1))
    seeds = [resample(shared + shift, ones) for shift in (-1.0, 0.0, 4.0)]
    mean = mean_of(seeds)
    assert mean.value == pytest.approx(shared.mean() + 1)
    assert mean.spread == pytest.approx(seeds[0].spread)  # one document, one draw: nothing averages out
    own = [resample(generator.normal(size=(60, 1)), ones) for _ in range(4)]
    assert mean_of(own).spread == pytest.approx(np.mean([part.spread for part in own]) / 2, rel=0.25)
    assert mean_of([resample(ones[:1], ones[:1])]).interval().low is None
    assert resample(ones[:1], ones[:1]).spread == 0


def test_windows_of_a_document_are_one_unit() -> None:
    sums, names = group_sums(np.array([[1.0], [2.0], [4.0]]), ["b", "a", "b"])
    assert names == ["b", "a"]
    np.testing.assert_array_equal(sums, [[5.0], [2.0]])


@pytest.mark.parametrize("queries", [2, 3, 4])
def test_few_queries_that_agree_are_no_proof(queries: int) -> None:
    """Two models that guess between two answers: of all outcomes at most a share p has a p value of p or less."""
    ones = np.ones((queries, 1))
    found = []
    for outcome in itertools.product((0.0, 1.0), repeat=2 * queries):
        mine, theirs = np.array(outcome).reshape(2, queries, 1)
        found.append((resample(mine, ones, draws=200) - resample(theirs, ones, draws=200)).interval().p)
    for level in (0.001, 0.01, 0.05):
        assert np.mean(np.array(found) <= level) <= level
    assert min(found) == pytest.approx({2: 0.5, 3: 0.2, 4: 0.06}[queries], abs=0.05)

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mesalm.data.stream import Mixture, epoch_order, picks


def one_by_one(weights: list[int], draws: int) -> list[int]:
    """Draw by the rule itself, in exact arithmetic: the largest w / (2 c + 1), the first of equals."""
    counts, drawn = [0] * len(weights), []
    for _ in range(draws):
        claims = [Fraction(weight, 2 * count + 1) for weight, count in zip(weights, counts, strict=True)]
        part = claims.index(max(claims))
        counts[part] += 1
        drawn.append(part)
    return drawn


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1], [70, 25, 5], [1, 1000], [2, 3, 5, 7, 11]])
def test_draws_are_those_of_the_rule_wherever_one_begins(weights: list[int]) -> None:
    drawn = one_by_one(weights, 400)
    for begin, count in ((0, 400), (1, 5), (123, 1), (250, 150)):
        parts, numbers = picks([float(weight) for weight in weights], begin, count)
        assert parts.tolist() == drawn[begin : begin + count]
        assert numbers.tolist() == [drawn[:at].count(drawn[at]) for at in range(begin, begin + count)]
    for draws in (10, 100, 400):
        for part, weight in enumerate(weights):
            assert abs(drawn[:draws].count(part) - draws * weight / sum(weights)) <= 1


def test_each_part_is_gone_through_in_its_own_orders() -> None:
    sizes, weights = [5, 40], [1.0, 3.0]
    rows = Mixture(sizes, weights).rows(7, 0, 200)
    whole = np.concatenate([Mixture(sizes, weights).rows(7, begin, 20) for begin in range(0, 200, 20)])
    assert rows.tolist() == whole.tolist()
    few, many = rows[rows < 5], rows[rows >= 5] - 5
    assert (len(few), len(many)) == (50, 150)
    for part, (size, drawn) in enumerate(zip(sizes, (few, many), strict=True)):
        for epoch in range(len(drawn) // size):
            order = epoch_order(7, epoch, size, part)
            assert drawn[epoch * size : (epoch + 1) * size].tolist() == order.tolist()

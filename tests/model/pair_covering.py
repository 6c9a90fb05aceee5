"""Choose few rows of a table of factors in which every pair of levels meets (pairwise testing)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

Level = tuple[str, Hashable]
Meeting = Callable[[Level, Level], bool]


def level_pairs(factors: Mapping[str, Sequence[Hashable]], allowed: Meeting) -> list[tuple[Level, Level]]:
    """List every pair of levels of two factors that may meet, factors in their order."""
    levels = [[(name, level) for level in factors[name]] for name in factors]
    both = (itertools.product(a, b) for a, b in itertools.combinations(levels, 2))
    return [pair for pair in itertools.chain.from_iterable(both) if allowed(*pair)]


def covering(
    factors: Mapping[str, Sequence[Hashable]], allowed: Meeting, start: Iterable[Mapping[str, Hashable]] = ()
) -> list[dict[str, Hashable]]:
    """Choose few rows, a level of each factor, in which every allowed pair of levels meets; greedy, deterministic.

    start: beginnings of rows that must be there; then each pair that is still missing begins a row. A beginning is
    completed by the levels that bring the most missing pairs; what ties is drawn, or levels would go in lock-step.
    """
    generator = random.Random(0)
    order = {name: place for place, name in enumerate(factors)}
    missing = dict.fromkeys(level_pairs(factors, allowed))
    rows: list[dict[str, Hashable]] = []

    def price(level: Level, others: list[Level]) -> tuple[int, float]:
        pairs = ((level, other) if order[level[0]] < order[other[0]] else (other, level) for other in others)
        return -sum(pair in missing for pair in pairs), generator.random()

    beginnings = iter(list(start))
    while (begun := next(beginnings, None) or (next(iter(missing)) if missing else None)) is not None:
        row = dict(begun)
        for name in generator.sample(list(factors), len(factors)):
            if name not in row:
                others = list(row.items())
                levels = ((name, level) for level in factors[name])
                fitting = [level for level in levels if all(allowed(level, other) for other in others)]
                row[name] = min(fitting, key=lambda level, others=others: price(level, others))[1]
        rows.append({name: row[name] for name in factors})
        for pair in itertools.combinations(rows[-1].items(), 2):
            missing.pop(pair, None)
    return rows

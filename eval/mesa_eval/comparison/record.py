"""The result of a comparison: arms, rows of values and differences, and the declared family of tests.

Every row shows values; verdicts are rare. Only the tests of the family, fixed before any model is seen and corrected
for multiple testing, are called better, worse or not significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mesa_eval.comparison.arms import Arm
from mesa_eval.measures.scores import Scores, Statistic
from mesa_eval.uncertainty.intervals import Interval, holm

PRIMARY = "primary_average"
FAMILY = ("bits_per_byte", PRIMARY, "demonstration_gain/pairing")  # and the test row of each task, for every arm
CORRECTION = "Holm"
LEAST = 0.05  # a p value below this, adjusted for the whole family, is significant
NOT_SIGNIFICANT = "not significant"


@dataclass(frozen=True)
class Difference:
    """An arm's difference from the baseline, or the reason why there is none.

    With one pair of models `interval` is the paired bootstrap over units. With several, paired by training seed, it is
    Student's t interval over the seeds; `items` is the bootstrap over units of the mean over seeds, `joint` covers
    seeds and units together, and `by_seed` holds each seed's difference.
    """

    interval: Interval | None = None
    reason: str = ""
    items: Interval | None = None
    joint: Interval | None = None
    by_seed: tuple[tuple[int | None, float], ...] = ()

    @property
    def decisive(self) -> Interval | None:
        """Return the interval that gives the p value: it covers all measured sources of randomness."""
        return self.joint or self.interval


@dataclass(kw_only=True)
class Row(Statistic):
    """One statistic of all arms: each arm's value and difference from the baseline.

    `values` are bootstrap intervals over units for one model, t intervals over training seeds for several; `by_seed`
    [arm][member] are the values of the single models; `effective` is the effective number of units (see
    `effective_units`), the least of the models'.
    """

    values: tuple[Interval | None, ...]
    differences: tuple[Difference, ...]
    by_seed: tuple[tuple[float | None, ...], ...]
    chance: tuple[float | None, ...] = ()
    effective: float = 0.0


@dataclass(frozen=True)
class FamilyTest:
    """One test of the family: the arm's index, the row, its p value and Holm's adjustment over all tests."""

    arm: int
    row: Row
    p: float
    adjusted: float

    @property
    def task(self) -> str:
        """Return the task's name, "" for the rows over all text or all tasks."""
        return self.row.task

    @property
    def verdict(self) -> str:
        """Return "better", "worse" or "not significant"."""
        if self.adjusted >= LEAST:
            return NOT_SIGNIFICANT
        found = self.row.differences[self.arm].decisive
        assert found is not None
        return "better" if (found.value < 0) == (self.row.better == "lower") else "worse"


@dataclass(frozen=True)
class Comparison:
    """The scores of all models, their arms and every row; `baseline` is -1 if nothing is compared."""

    scores: list[Scores]
    arms: list[Arm]
    baseline: int
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return the arms' names in order."""
        return [arm.name for arm in self.arms]

    @property
    def base(self) -> str:
        """Return the name of the baseline, "" if nothing is compared."""
        return self.names[self.baseline] if self.baseline >= 0 else ""

    @property
    def compared(self) -> list[int]:
        """Return the indices of the arms that are compared with the baseline."""
        return [] if self.baseline < 0 else [i for i in range(len(self.arms)) if i != self.baseline]

    @property
    def seeded(self) -> bool:
        """Return whether any difference is based on several training seeds."""
        return any(difference.joint is not None for row in self.rows for difference in row.differences)

    def members(self, index: int) -> list[Scores]:
        """Return the scores of an arm's models, in the order of their seeds."""
        return [self.scores[place] for place in self.arms[index].members]

    def section(self, name: str) -> list[Row]:
        """Return the rows of one section."""
        return [row for row in self.rows if row.section == name]

    def row(self, key: str) -> Row | None:
        """Return the row of a key, or None."""
        return next((row for row in self.rows if row.key == key), None)

    @property
    def tasks(self) -> list[str]:
        """Return the names of the few-shot tasks in order."""
        return list(dict.fromkeys(row.task for row in self.rows if row.task))

    def of_task(self, task: str) -> list[Row]:
        """Return the rows of one few-shot task."""
        return [row for row in self.rows if row.task == task]

    def tested_row(self, task: str) -> Row | None:
        """Return the row that is tested for a task: its primary one, else accuracy at the most shots.

        Accuracy is "greedy" for the last word of texts, and "contains" for values in texts.
        """
        rows = self.of_task(task)
        chosen = [row for row in rows if row.primary] or [row for row in rows if _judges(row)]
        shared = [row for row in chosen if all(value is not None for value in row.values)]
        found = shared or chosen
        return found[-1] if found else None

    def family_rows(self) -> list[Row]:
        """Return the rows of the declared family: those over all text or all tasks, then one of each task."""
        rows = [*(self.row(key) for key in FAMILY), *(self.tested_row(task) for task in self.tasks)]
        return [row for row in rows if row is not None]

    @cached_property
    def family(self) -> list[FamilyTest]:
        """Return all tests of the declared family for all arms, with p values adjusted by Holm over all of them.

        Rows without a difference are not tests.
        """
        tests = [
            (index, row, found.p)
            for index in self.compared
            for row in self.family_rows()
            if (found := row.differences[index].decisive) is not None and found.p is not None
        ]
        adjusted = holm([p for *_, p in tests])
        return [FamilyTest(*test, after) for test, after in zip(tests, adjusted, strict=True)]

    def tests(self, index: int) -> list[FamilyTest]:
        """Return the tests of the family that are about one arm."""
        return [test for test in self.family if test.arm == index]

    def verdict(self, row: Row, index: int) -> str:
        """Return the verdict on a row and an arm; "" for a row that is not a test of the family."""
        return self._verdicts.get((row.key, index), "")

    @cached_property
    def _verdicts(self) -> dict[tuple[str, int], str]:
        return {(test.row.key, test.arm): test.verdict for test in self.family}


def _judges(row: Row) -> bool:
    plain = not row.variant and not row.group
    return plain and (row.metric in ("accuracy", "greedy") or (row.metric == "contains" and row.shots == 0))


def ordered_keys(tables: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """Return all keys of (section, key), those of one section together, in the order in which they first come."""
    sections: dict[str, dict[str, None]] = {}
    for table in tables:
        for section, key in table:
            sections.setdefault(section, {})[key] = None
    return [key for keys in sections.values() for key in keys]

"""What a comparison holds: arms, rows of values and differences, and the claims made task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mesa_eval.arms import Arm
from mesa_eval.scores import Scores
from mesa_eval.uncertainty.intervals import Interval, holm

PRIMARY = "primary_average"


@dataclass(frozen=True)
class Difference:
    """Hold an arm's difference from the baseline, or the reason why there is none.

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
        """Return the interval that decides whether a difference is told: all sources of chance that were measured."""
        return self.joint or self.interval


@dataclass(frozen=True)
class Row:
    """Hold one measure: each arm's value and difference from the baseline.

    `better` is "lower", "higher" or "" for a measure without a good direction; `digits` are the decimals shown; `x`,
    `resampled` and `primary` are those of `Measure`; `effective` is the effective number of units (see
    `effective_units`), the least of the models'. `values` are bootstrap intervals over units for one model, t intervals
    over training seeds for several; `by_seed` [arm][member] are the values of the single models.
    """

    section: str
    key: str
    label: str
    unit: str
    better: str
    digits: int
    values: tuple[Interval | None, ...]
    differences: tuple[Difference, ...]
    by_seed: tuple[tuple[float | None, ...], ...]
    chance: tuple[float | None, ...] = ()
    x: float | None = None
    resampled: str = ""
    primary: bool = False
    effective: float = 0.0

    def verdict(self, index: int) -> str:
        """Return "better", "worse", "differs" or "no difference told" for an arm; "" where nothing is compared."""
        found = self.differences[index].decisive
        if found is None:
            return ""
        if not found.tells:
            return "no difference told"
        if not self.better:
            return "differs"
        return "better" if (found.value < 0) == (self.better == "lower") else "worse"


@dataclass(frozen=True)
class Claim:
    """Hold what one task says of an arm: its row, the p value and Holm's adjustment over all tasks."""

    task: str
    row: Row
    p: float
    adjusted: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Hold the scores of all models, their arms and every row; `baseline` is -1 where nothing is compared."""

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
        """Return the name of the baseline, "" where nothing is compared."""
        return self.names[self.baseline] if self.baseline >= 0 else ""

    @property
    def compared(self) -> list[int]:
        """Return the indices of the arms that are compared with the baseline."""
        return [] if self.baseline < 0 else [i for i in range(len(self.arms)) if i != self.baseline]

    @property
    def seeded(self) -> bool:
        """Return whether some difference rests on several training seeds."""
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

    def starting(self, start: str) -> list[Row]:
        """Return the rows of a key and of its variants, `key/...`."""
        return [row for row in self.rows if row.key == start or row.key.startswith(f"{start}/")]

    def task_sections(self) -> list[str]:
        """Return the sections of the few-shot tasks in order."""
        return list(dict.fromkeys(row.section for row in self.rows if row.section.startswith("task/")))

    def claim_row(self, section: str) -> Row | None:
        """Return the row by which a task is judged: its primary one, else accuracy at the most shots.

        For the last word of texts accuracy is the greedy one, for values in texts that the answer is contained.
        """
        rows = self.section(section)
        chosen = [row for row in rows if row.primary] or [
            row for row in rows if row.key.endswith(("/accuracy", "/greedy")) or row.key.endswith("/0/contains")
        ]
        shared = [row for row in chosen if all(value is not None for value in row.values)]
        found = shared or chosen
        return found[-1] if found else None

    def claims(self, index: int) -> list[Claim]:
        """Return one claim a task about an arm, with p values adjusted by Holm over all of them."""
        judged: list[tuple[str, Row, float]] = []
        for section in self.task_sections():
            row = self.claim_row(section)
            found = None if row is None else row.differences[index].decisive
            if row is not None and found is not None and found.p is not None:
                judged.append((section.removeprefix("task/"), row, found.p))
        adjusted = holm([p for _, _, p in judged])
        return [
            Claim(task, row, p, corrected, row.verdict(index) if corrected < 0.05 else "no difference told")
            for (task, row, p), corrected in zip(judged, adjusted, strict=True)
        ]


def ordered_keys(tables: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """Return all keys of (section, key), those of one section together, in the order in which they first come."""
    sections: dict[str, dict[str, None]] = {}
    for table in tables:
        for section, key in table:
            sections.setdefault(section, {})[key] = None
    return [key for keys in sections.values() for key in keys]

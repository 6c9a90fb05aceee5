"""Compare models pair by pair against a baseline, every difference with a 95 % interval.

Units resampled: documents for text and for loss by position, random sequences for copying, queries for
few-shot tasks (mean over demonstration draws within a query). Only bits per byte compares models whose
tokenizers differ; every other row then says why it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mesa_eval.bootstrap import Interval, Transform, paired_intervals, ratio_intervals
from mesa_eval.scores import Measure, Scores
from mesa_eval.suite import make_plan, run_plan

OTHER_TOKENIZER = "tokenizers differ: only bits per byte compares"
OTHER_WINDOW = "windows differ"
OTHER_ITEMS = "other items were asked"
NOT_MEASURED = "not measured"
TRANSFORMS: dict[str, Transform | None] = {"": None, "exp": np.exp}


@dataclass(frozen=True)
class Difference:
    """Hold a model's difference from the baseline, or the reason why there is none."""

    interval: Interval | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """Hold one measure: each model's value and difference from the baseline.

    `better` is "lower", "higher" or "" for a measure without a good direction; `digits` are the decimals shown; `x`,
    `resampled` and `primary` are those of `Measure`.
    """

    section: str
    key: str
    label: str
    unit: str
    better: str
    digits: int
    values: tuple[Interval | None, ...]
    differences: tuple[Difference, ...]
    chance: tuple[float | None, ...] = ()
    x: float | None = None
    resampled: str = ""
    primary: bool = False


@dataclass(frozen=True)
class Comparison:
    """Hold the scores of all models and every row made of them; `baseline` is -1 where nothing is compared."""

    scores: list[Scores]
    baseline: int
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return the models' names in order."""
        return [scores.model.name for scores in self.scores]

    @property
    def compared(self) -> list[int]:
        """Return the indices of the models that are compared with the baseline."""
        indices = range(len(self.scores))
        return [
            i for i in indices if any(row.differences[i].interval or row.differences[i].reason for row in self.rows)
        ]

    def section(self, name: str) -> list[Row]:
        """Return the rows of one section."""
        return [row for row in self.rows if row.section == name]

    def row(self, key: str) -> Row | None:
        """Return the row of a key, or None."""
        return next((row for row in self.rows if row.key == key), None)

    def starting(self, start: str) -> list[Row]:
        """Return the rows of a key and of its variants, `key/...`."""
        return [row for row in self.rows if row.key == start or row.key.startswith(f"{start}/")]


def compare(
    models: Sequence[str],
    suite: str = "quick",
    *,
    texts: Sequence[str] = (),
    split: str = "valid",
    tasks: Sequence[str] = (),
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_tokens: int = 8192,
    baseline: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Path:
    """Measure models, compare each with the baseline, and return the path of `report.html`.

    Arguments as in `mesa_eval.suite.evaluate`; `baseline` is "first", "last" (as None), a model's
    name or its argument; `out` is the
    folder of `report.html`, `report.json` and `scores/` (default `reports/<A>-vs-<B>`). Prints tables on the
    terminal. Raises ValueError in one line for bad input.
    """
    from mesa_eval.report import write_report
    from mesa_eval.tables import print_comparison

    if len(models) < 2:
        raise ValueError(f"compare: {len(models)} model given; at least two are needed")
    plan = make_plan(models, suite, texts, split, tasks, seed, trust_remote_code)
    names = [source.name for source in plan.sources]
    chosen = find_baseline(names, list(models), baseline)
    folder = Path(out) if out is not None else Path("reports") / "-vs-".join(names)
    scores = run_plan(plan, folder, device, batch_tokens, trust_remote_code, quiet)
    comparison = build_comparison(scores, chosen)
    if not quiet:
        print_comparison(comparison)
    return write_report(comparison, folder)


def find_baseline(names: Sequence[str], arguments: Sequence[str], baseline: str | None) -> int:
    """Return the index of the baseline; ValueError if no model has that name or argument."""
    for known in (list(names), list(arguments)):
        if baseline in known:
            return known.index(baseline)
    if baseline in (None, "first", "last"):
        return 0 if baseline == "first" else len(names) - 1
    raise ValueError(f"baseline {baseline!r}: must be 'first', 'last' or one of {', '.join(names)}")


def build_comparison(scores: list[Scores], baseline: int = 0, *, differences: bool = True) -> Comparison:
    """Make every row from raw scores; without `differences` only the models' own values get intervals.

    A row is a key: models that lack it, or were asked other items, say so in place of a difference.
    """
    base = baseline if differences else -1
    seed = int(scores[0].protocol["seed"])
    tables = [{measure.key: measure for measure in item.measures} for item in scores]
    rows = [_row(key, [table.get(key) for table in tables], scores, base, seed) for key in _ordered_keys(tables)]
    notes = dict.fromkeys(note for item in scores for note in [*item.notes, *_part_notes(item)])
    return Comparison(scores, base, rows, list(notes))


def _part_notes(scores: Scores) -> list[str]:
    return [note for part in scores.parts for note in part.notes]


def _ordered_keys(tables: Sequence[Mapping[str, Measure]]) -> list[str]:
    """Return all keys, those of one section together, sections and keys in the order in which they first come."""
    sections: dict[str, dict[str, None]] = {}
    for table in tables:
        for measure in table.values():
            sections.setdefault(measure.section, {})[measure.key] = None
    return [key for keys in sections.values() for key in keys]


def _row(key: str, measures: Sequence[Measure | None], scores: Sequence[Scores], baseline: int, seed: int) -> Row:
    first = next(measure for measure in measures if measure is not None)
    values, differences = [], []
    base = measures[baseline] if baseline >= 0 else None
    for number, own in enumerate(measures):
        values.append(None if own is None else _interval(own, None, seed))
        reason = "" if number == baseline or baseline < 0 else _reason(own, base, scores[number], scores[baseline])
        if reason is None and own is not None and base is not None:
            differences.append(Difference(_interval(own, base, seed)))
        else:
            differences.append(Difference(reason=reason or ""))
    chance = tuple(None if measure is None else measure.chance for measure in measures)
    return Row(
        first.section,
        key,
        first.label,
        first.unit,
        first.better,
        first.digits,
        tuple(values),
        tuple(differences),
        chance if any(entry is not None for entry in chance) else (),
        x=first.x,
        resampled=first.resampled,
        primary=first.primary,
    )


def _interval(own: Measure, base: Measure | None, seed: int) -> Interval:
    """Return the interval of a measure, or of its difference from the baseline's."""
    sums = [np.array(table) for item in (own, base) if item is not None for table in (item.numerator, item.denominator)]
    intervals = ratio_intervals if base is None else paired_intervals
    (interval,) = intervals(*sums, transform=TRANSFORMS[own.transform], average=True, seed=seed)
    return interval


def _reason(own: Measure | None, base: Measure | None, model: Scores, other: Scores) -> str | None:
    """Say why a model is not compared with the baseline; None if it can be."""
    if own is None or base is None:
        return NOT_MEASURED
    if not own.any_tokenizer and model.model.tokenizer != other.model.tokenizer:
        return OTHER_TOKENIZER
    if not own.any_tokenizer and model.window != other.window:
        return OTHER_WINDOW
    return None if (own.items, own.units) == (base.items, base.units) else OTHER_ITEMS

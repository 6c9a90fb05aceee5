"""Compare models pair by pair against a baseline, every difference with a 95 % interval.

Units resampled: documents for text and for loss by position, random sequences for copying, queries for
few-shot tasks (mean over demonstration draws within a query). Only bits per byte compares models whose
tokenizers differ; every other row then says why it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mesa_eval.bootstrap import Interval, Transform, group_sums, paired_intervals, ratio_intervals
from mesa_eval.scores import Scores, ShotScores, TaskScores
from mesa_eval.suite import make_plan, run_plan

OTHER_TOKENIZER = "tokenizers differ: only bits per byte compares"
OTHER_WINDOW = "windows differ"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Units:
    """Hold the resampled units of one measure and model: names [U], numerator and denominator [U, C]."""

    names: tuple[str, ...]
    numerator: np.ndarray
    denominator: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Hold a model's difference from the baseline, or the reason why there is none."""

    interval: Interval | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """Hold one measure: each model's value and difference from the baseline.

    `better` is "lower", "higher" or "" for a measure without a good direction; `digits` are the decimals shown.
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
    """Make every row from raw scores; without `differences` only the models' own values get intervals."""
    builder = _Builder(scores, baseline if differences else -1)
    builder.text_rows()
    builder.position_rows()
    builder.copy_rows()
    builder.task_rows()
    notes = list(dict.fromkeys(note for item in scores for note in item.notes))
    for names in builder.left_out:
        notes.append(names)
    return Comparison(scores, baseline if differences else -1, builder.rows, notes)


class _Builder:
    def __init__(self, scores: list[Scores], baseline: int) -> None:
        self.scores = scores
        self.baseline = baseline
        self.seed = int(scores[0].protocol["seed"])
        self.rows: list[Row] = []
        self.left_out: list[str] = []

    def add(
        self,
        section: str,
        keys: Sequence[str],
        labels: Sequence[str],
        unit: str,
        better: str,
        digits: int,
        units: Sequence[Units | None],
        *,
        any_tokenizer: bool = False,
        transform: Transform | None = None,
        chance: Sequence[Sequence[float | None]] = (),
    ) -> None:
        """Add one row a column of `units`, all columns resampled together."""
        values: list[list[Interval | None]] = []
        differences: list[list[Difference]] = []
        base = units[self.baseline]
        for number, own in enumerate(units):
            blank: list[Interval | None] = [None] * len(keys)
            values.append(
                blank
                if own is None
                else list(ratio_intervals(own.numerator, own.denominator, transform=transform, seed=self.seed))
            )
            reason = self._reason(number, own, base, any_tokenizer)
            if reason is not None or own is None or base is None:
                differences.append([Difference(reason=NOT_MEASURED if reason is None else reason)] * len(keys))
                continue
            found = paired_intervals(
                own.numerator,
                own.denominator,
                base.numerator,
                base.denominator,
                transform=transform,
                seed=self.seed,
            )
            differences.append([Difference(interval) for interval in found])
        for column, key in enumerate(keys):
            self.rows.append(
                Row(
                    section,
                    key,
                    labels[column],
                    unit,
                    better,
                    digits,
                    tuple(value[column] for value in values),
                    tuple(difference[column] for difference in differences),
                    tuple(entry[column] for entry in chance),
                )
            )

    def _reason(self, number: int, own: Units | None, base: Units | None, any_tokenizer: bool) -> str | None:
        """Say why a model is not compared with the baseline; None if it can be."""
        if number == self.baseline or self.baseline < 0:
            return ""
        if own is None or base is None:
            return NOT_MEASURED
        one, other = self.scores[number], self.scores[self.baseline]
        if not any_tokenizer and one.model.tokenizer != other.model.tokenizer:
            return OTHER_TOKENIZER
        if not any_tokenizer and one.window != other.window:
            return OTHER_WINDOW
        return None if own.names == base.names else "units differ"

    def text_rows(self) -> None:
        """Add bits per byte over all text and by domain, then perplexity a token."""
        domains = sorted({document.domain for document in self.scores[0].documents})
        for domain in [None, *(domains if len(domains) > 1 else [])]:
            units = [self._documents(scores, domain, np.log(2), by_bytes=True) for scores in self.scores]
            count = len(units[0].names)
            label = f"{domain or 'all text'} ({count} document{'s' if count != 1 else ''})"
            key = "bits_per_byte" if domain is None else f"bits_per_byte/{domain}"
            self.add("text", [key], [label], "bits per byte", "lower", 4, units, any_tokenizer=True)
        tokens = [self._documents(scores, None, 1.0, by_bytes=False) for scores in self.scores]
        self.add("text", ["perplexity"], ["perplexity"], "per token", "lower", 2, tokens, transform=np.exp)

    def _documents(self, scores: Scores, domain: str | None, scale: float, *, by_bytes: bool) -> Units:
        chosen = [document for document in scores.documents if domain in (None, document.domain)]
        sizes = [document.bytes if by_bytes else document.tokens for document in chosen]
        return Units(
            tuple(document.identifier for document in chosen),
            np.array([[document.nats / scale] for document in chosen]),
            np.array(sizes, dtype=float)[:, None],
        )

    def position_rows(self) -> None:
        """Add loss by position bin and the in-context score."""
        measured = [scores.positions for scores in self.scores]
        windows = {positions.window for positions in measured if positions is not None}
        for window in sorted(windows):
            here = [item if item is not None and item.window == window else None for item in measured]
            some = next(item for item in here if item is not None)
            suffix = f"/{window}" if len(windows) > 1 else ""
            labels = [str(a) if a == b else f"{a}-{b}" for a, b in some.bins]
            bins = [None if item is None else _grouped(np.array(item.nats), item.units) for item in here]
            keys = [f"position/{label}{suffix}" for label in labels]
            self.add("position", keys, labels, "nats per token", "lower", 3, bins)
            scored = [
                None if item is None else _grouped((np.array(item.late) - np.array(item.early))[:, None], item.units)
                for item in here
            ]
            self.add("context", [f"in_context{suffix}"], [some.score_name], "nats per token", "lower", 3, scored)

    def copy_rows(self) -> None:
        """Add copy score and copy accuracy."""
        measured = [scores.copy for scores in self.scores]
        if all(item is None for item in measured):
            return
        length = max(item.length for item in measured if item is not None)
        units: list[Units | None] = []
        for item in measured:
            if item is None:
                units.append(None)
                continue
            gain = np.array(item.first) - np.array(item.second)
            units.append(_means(np.stack([gain, np.array(item.accuracy)], 1), item.length))
        chance = [(0.0, None if item is None else item.chance) for item in measured]
        labels = [f"copy score, 2 x {length} random tokens", "copy accuracy"]
        for column, (key, unit) in enumerate([("copy_score", "nats per token"), ("copy_accuracy", "share")]):
            chosen = [item if item is None else _column(item, column) for item in units]
            rows = [[entry[column]] for entry in chance]
            self.add("context", [key], [labels[column]], unit, "higher", 3, chosen, chance=rows)

    def task_rows(self) -> None:
        """Add, for each task, the answer's bits per byte, accuracy and exact match by shots."""
        for number, first in enumerate(self.scores[0].tasks):
            tasks = [scores.tasks[number] for scores in self.scores]
            cuts: dict[str, list[str]] = {}
            for scores, task in zip(self.scores, tasks, strict=True):
                if task.cut:
                    words = f"{', '.join(map(str, task.cut))} shots left out, a prompt exceeds {scores.window} tokens"
                    cuts.setdefault(words, []).append(scores.model.name)
                self.left_out.extend(f"{task.task}: {note}" for note in task.notes)
            for words, names in cuts.items():
                self.left_out.append(f"{first.task}: {words} or items run out ({', '.join(names)})")
            self.left_out = list(dict.fromkeys(self.left_out))
            levels = sorted({level.shots for task in tasks for level in task.shots})
            for shots in levels:
                found = [_level(task, shots) for task in tasks]
                self._shot_rows(first.task, first.kind, shots, found)

    def _shot_rows(self, task: str, kind: str, shots: int, levels: list[ShotScores | None]) -> None:
        section = f"task/{task}"
        label = f"{shots} shot{'s' if shots != 1 else ''}"
        key = f"{section}/{shots}"
        likelihood = [
            None
            if level is None
            else Units(
                _numbers(len(level.nats)),
                np.array(level.nats).mean(1, keepdims=True) / np.log(2),
                np.array(level.bytes, dtype=float)[:, None],
            )
            for level in levels
        ]
        self.add(
            section,
            [f"{key}/answer"],
            [label],
            "answer, bits per byte",
            "lower",
            3,
            likelihood,
            any_tokenizer=True,
        )
        chance = [[None if level is None else level.chance] for level in levels]
        parts: list[tuple[str, str, Callable[[ShotScores], list[list[float]]]]] = [
            ("accuracy", "accuracy", lambda level: level.right)
        ]
        if kind != "class":
            parts.append(("exact", "exact match", lambda level: level.exact))
        for name, unit, values in parts:
            units = [
                None if level is None else _means(np.array(values(level)).mean(1, keepdims=True)) for level in levels
            ]
            beside = chance if name == "accuracy" else [[0.0]] * len(levels)
            self.add(section, [f"{key}/{name}"], [label], unit, "higher", 3, units, chance=beside)


def _level(task: TaskScores, shots: int) -> ShotScores | None:
    return next((level for level in task.shots if level.shots == shots), None)


def _grouped(values: np.ndarray, owners: Sequence[str]) -> Units:
    """Sum the windows of each document, so that a document is one unit."""
    sums, names = group_sums(values, owners)
    counts, _ = group_sums(np.ones_like(values), owners)
    return Units(tuple(names), sums, counts)


def _means(values: np.ndarray, kind: object = "") -> Units:
    return Units(_numbers(len(values), kind), values, np.ones_like(values))


def _column(units: Units, column: int) -> Units:
    chosen = slice(column, column + 1)
    return Units(units.names, units.numerator[:, chosen], units.denominator[:, chosen])


def _numbers(count: int, kind: object = "") -> tuple[str, ...]:
    return tuple(f"{kind}{number}" for number in range(count))

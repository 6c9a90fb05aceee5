"""Make the rows of a comparison from measures: values of arms, paired differences, and the primary average.

Every statistic of every model is resampled once. All models share the draws of a section, so a difference
is the difference of their draws. There is one row per key; arms without it, or asked other items, show the reason
instead of a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mesa_eval.comparison.arms import NO_COMMON_SEED, Arm, find_arms, pairs
from mesa_eval.comparison.record import PRIMARY, Comparison, Difference, Row, ordered_keys
from mesa_eval.measures.scores import Measure, Scores, Statistic
from mesa_eval.reading.documents import stable_number
from mesa_eval.uncertainty.bootstrap import DRAWS, Resampled, Transform, mean_of, resample, seeds_and_units
from mesa_eval.uncertainty.intervals import Interval, t_interval
from mesalm.wording import plural

OTHER_TOKENIZER = "tokenizers differ: only bits per byte can be compared"
OTHER_WINDOW = "windows differ"
OTHER_SUITE = "suites differ"
OTHER_ITEMS = "items differ"
OTHER_SEED = "seeds of the items differ"
OTHER_TEXT = "texts differ"
NOT_MEASURED = "not measured"
MOST_NATS = 300.0  # exp of more leaves no room for the variance of a bootstrap in float64
MOST_NULL = 0.8  # with less room above it, one query more or less would move a task by more than the others
GAINS = (("", "demonstration gain"), ("pairing", "demonstration gain by pairing"))  # variant, label
TRANSFORMS: dict[str, Transform | None] = {"": None, "exp": np.exp}


def build_comparison(
    scores: list[Scores],
    baseline: int = 0,
    *,
    differences: bool = True,
    arms: Sequence[Arm] | None = None,
    draws: int = DRAWS,
) -> Comparison:
    """Make every row from raw scores; `baseline` is an arm's index. Without `differences` nothing is compared.

    `arms` default to those of `find_arms`; `draws` is the number of bootstrap draws.
    """
    arms = list(arms or find_arms([item.model for item in scores]))
    table = _Table(scores, arms, baseline if differences and len(arms) > 1 else -1, draws)
    keys = ordered_keys([[(measure.section, key) for key, measure in own.items()] for own in table.measures])
    rows = table.average() + table.gains() + [table.row(key) for key in keys]
    notes = [*table.notes, *_lone_seeds(arms, table.baseline), *_gathered_notes(scores)]
    return Comparison(scores, arms, table.baseline, rows, notes)


def _lone_seeds(arms: Sequence[Arm], baseline: int) -> list[str]:
    """Return a note for each difference that is based on fewer training seeds than the values beside it."""
    notes = []
    for arm in arms if baseline >= 0 else ():
        base = arms[baseline]
        seeds = [str(seed) for seed, *_ in pairs(arm, base)]
        if 0 < len(seeds) < max(len(arm.members), len(base.members)):
            notes.append(
                f"{arm.name} less {base.name}: values are means over all seeds, differences only over seeds of both:"
                f" {', '.join(seeds)}"
            )
    return notes


def _gathered_notes(scores: Sequence[Scores]) -> list[str]:
    """Return every note once, with the names of the models it is about unless it is about all."""
    of: dict[str, list[str]] = {}
    for item in scores:
        for note in [*item.notes, *(note for part in item.parts for note in part.notes)]:
            of.setdefault(note.text, []).extend([item.model.name] if note.own else [])
    few = {note: names if len(names) < len(scores) else [] for note, names in of.items()}
    return [f"{note} ({', '.join(names)})" if names else note for note, names in few.items()]


class _Table:
    def __init__(self, scores: Sequence[Scores], arms: Sequence[Arm], baseline: int, draws: int) -> None:
        self.draws = draws
        self.scores = scores
        self.arms = arms
        self.baseline = baseline
        self.seed = int(scores[0].protocol["seed"])
        self.measures = [{measure.key: measure for measure in item.measures if _fits(measure)} for item in scores]
        self.notes = [
            f"{measure.key} of {item.model.name} left out: a mean loss over {MOST_NATS:g} nats is too large for exp"
            for item in scores
            for measure in item.measures
            if not _fits(measure)
        ]

    def row(self, key: str) -> Row:
        """Return the row of one key."""
        measures = [table.get(key) for table in self.measures]
        first = next(measure for measure in measures if measure is not None)
        drawn = [None if measure is None else self._resample(measure) for measure in measures]
        chance = tuple(
            self._first(arm, [None if item is None else item.chance for item in measures]) for arm in self.arms
        )
        return self._row(first, drawn, [[measure] for measure in measures], chance)

    def average(self) -> list[Row]:
        """Return the row of the predeclared average: the mean of (score - null) / (1 - null) over tasks.

        Each task contributes its primary measure; if models have different numbers of shots, the smallest is used, so
        that all are asked the same. Tasks that some model lacks are left out for all, with a note; so are tasks whose
        null score is close to 1.
        """
        asked, lacking = self._primary()
        if lacking:
            self.notes.append(f"left out of the average, because not every model was asked: {', '.join(lacking)}")
        nulls = {task: max(table[key].chance or 0.0 for table in self.measures) for task, key in asked.items()}
        chosen = [key for task, key in asked.items() if nulls[task] <= MOST_NULL]
        full = [f"{task} ({null:.2f})" for task, null in nulls.items() if null > MOST_NULL]
        if full:
            self.notes.append(f"left out of the average, because the null is over {MOST_NULL}: {', '.join(full)}")
        if not chosen:
            return []
        first = _over_tasks(PRIMARY, "", "primary average", "score above the null, share", len(chosen))
        return [self._pooled(first, chosen, self._normalised)]

    def gains(self) -> list[Row]:
        """Return the gain from demonstrations in bits, pooled over tasks, and the part due to their pairing.

        All tasks have equal weight. A task that a model lacks, or for which it was asked other items, is left out for
        all, with a note.
        """
        rows = []
        for variant, label in GAINS:
            found = {
                measure.key: measure.task
                for table in self.measures
                for measure in table.values()
                if (measure.metric, measure.variant) == ("gain", variant)
            }
            chosen = [key for key in found if len({_asked(table.get(key)) for table in self.measures}) == 1]
            left = [task for key, task in found.items() if key not in chosen]
            if left:
                words = f"left out of the {label}, because models were asked different items"
                self.notes.append(f"{words}: {', '.join(left)}")
            if chosen:
                first = _over_tasks("demonstration_gain", variant, label, "bits per answer", len(chosen))
                rows.append(self._pooled(first, chosen, self._resample))
        return rows

    def _pooled(self, first: Statistic, chosen: Sequence[str], statistic: Callable[[Measure], Resampled]) -> Row:
        """Return the mean of one statistic over tasks, each resampled separately."""
        measures = [[table[own] for own in chosen] for table in self.measures]
        drawn: list[Resampled | None] = [mean_of([statistic(measure) for measure in own]) for own in measures]
        return self._row(first, drawn, measures, tuple(0.0 for _ in self.arms))

    def _primary(self) -> tuple[dict[str, str], list[str]]:
        """Return the key that each task contributes to the average, and the tasks that some model was not asked."""
        candidates: dict[str, dict[str, float]] = {}
        for table in self.measures:
            for measure in table.values():
                if measure.primary:
                    candidates.setdefault(measure.task, {})[measure.key] = measure.x or 0.0
        chosen, lacking = {}, []
        for task, keys in candidates.items():
            fewest = min(keys, key=lambda key: keys[key])
            if all(fewest in table for table in self.measures):
                chosen[task] = fewest
            else:
                lacking.append(task)
        return chosen, lacking

    def _normalised(self, measure: Measure) -> Resampled:
        null = measure.chance or 0.0
        raw = self._resample(measure)
        drawn = None if raw.drawn is None else (raw.drawn - null) / (1 - null)
        return Resampled((raw.value - null) / (1 - null), drawn, raw.units, raw.effective)

    def _resample(self, measure: Measure) -> Resampled:
        """Resample one statistic; sections have separate draws, since their units are unrelated."""
        seed = (self.seed, stable_number(measure.section))
        numerator, denominator = np.array(measure.numerator), np.array(measure.denominator)
        return resample(numerator, denominator, transform=TRANSFORMS[measure.transform], draws=self.draws, seed=seed)

    def _row(
        self,
        first: Statistic,
        drawn: Sequence[Resampled | None],
        measures: Sequence[Sequence[Measure | None]],
        chance: tuple[float | None, ...],
    ) -> Row:
        return Row(
            **first.statistic(),
            values=tuple(_value([drawn[place] for place in arm.members]) for arm in self.arms),
            differences=tuple(self._difference(index, drawn, measures) for index in range(len(self.arms))),
            by_seed=tuple(tuple(_plain(drawn[place]) for place in arm.members) for arm in self.arms),
            chance=chance if any(entry is not None for entry in chance) else (),
            effective=min((part.weighed for part in drawn if part is not None), default=0.0),
        )

    def _difference(
        self, index: int, drawn: Sequence[Resampled | None], measures: Sequence[Sequence[Measure | None]]
    ) -> Difference:
        if self.baseline < 0 or index == self.baseline:
            return Difference()
        paired = pairs(self.arms[index], self.arms[self.baseline])
        if not paired:
            return Difference(reason=NO_COMMON_SEED)
        found: list[tuple[int | None, Resampled]] = []
        first = paired[0][1]
        for seed, own, base in paired:
            reasons = [
                _reason(one, other, self.scores[own], self.scores[base])
                for one, other in zip(measures[own], measures[base], strict=True)
            ]
            reasons += [
                _unlike(one, other, self.scores[own], self.scores[first])  # all seeds are drawn with the same units
                for one, other in zip(measures[own], measures[first], strict=True)
                if one is not None and other is not None
            ]
            if any(reasons):
                return Difference(reason=next(filter(None, reasons)))
            mine, theirs = drawn[own], drawn[base]
            if mine is not None and theirs is not None:
                found.append((seed, mine - theirs))
        by_seed = tuple((seed, difference.value) for seed, difference in found)
        mean = mean_of([difference for _, difference in found])
        if len(found) == 1:
            return Difference(mean.interval(), by_seed=by_seed)
        values = [value for _, value in by_seed]
        joint = seeds_and_units([difference for _, difference in found])
        return Difference(t_interval(values), items=mean.interval(), joint=joint, by_seed=by_seed)

    @staticmethod
    def _first(arm: Arm, values: Sequence[float | None]) -> float | None:
        return next((values[place] for place in arm.members if values[place] is not None), None)


def _fits(measure: Measure) -> bool:
    """Return whether a perplexity, as of a diverged model, is small enough to be resampled."""
    return measure.transform != "exp" or np.sum(measure.numerator) <= MOST_NATS * np.sum(measure.denominator)


def _over_tasks(metric: str, variant: str, label: str, unit: str, tasks: int) -> Statistic:
    """Return the statistic of a mean over this many tasks."""
    words = f"{label} of {plural(tasks, 'task')}"
    return Statistic(
        section="primary",
        metric=metric,
        variant=variant,
        label=words,
        unit=unit,
        better="higher",
        digits=3,
        resampled="query",
    )


def _value(parts: Sequence[Resampled | None]) -> Interval | None:
    """Return an arm's value: a bootstrap interval for one model, a t interval over training seeds for several."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    return there[0].interval() if len(parts) == 1 else t_interval([part.value for part in there])


def _plain(part: Resampled | None) -> float | None:
    return None if part is None else part.value


def _asked(measure: Measure | None) -> str:
    """Return the items and units of a measure, "" if there is none."""
    return "" if measure is None else f"{measure.items} {measure.units}"


def _reason(own: Measure | None, base: Measure | None, model: Scores, other: Scores) -> str:
    """Return why a model cannot be compared with the baseline; "" if it can."""
    if own is None or base is None:
        return NOT_MEASURED
    if model.model.tokenizer != other.model.tokenizer:
        if not own.any_tokenizer:
            return _unlike_protocol(model, other) or OTHER_TOKENIZER
    elif model.window != other.window and (own.section == "text" or not own.any_tokenizer):
        return _unlike_protocol(model, other) or OTHER_WINDOW
    return _unlike(own, base, model, other)


def _unlike(own: Measure, base: Measure, model: Scores, other: Scores) -> str:
    """Return why two measures do not have the same units; "" if they do."""
    if words := _unlike_protocol(model, other):
        return words
    if own.resampled == "document" and not own.items:  # windows of the whole documents, not of the scored sample
        whole, others = model.collection_fingerprint, other.collection_fingerprint
        if model.text_fingerprint != other.text_fingerprint or (whole and others and whole != others):
            return OTHER_TEXT
        if own.denominator != base.denominator:  # other windows, or tokens that are rare in another training text
            return OTHER_ITEMS
    return "" if (own.items, own.units) == (base.items, base.units) else OTHER_ITEMS


def _unlike_protocol(model: Scores, other: Scores) -> str:
    """Return how the suites or seeds of two models' questions differ; "" if they do not."""
    for setting, words in (("name", OTHER_SUITE), ("seed", OTHER_SEED)):
        one, two = model.protocol[setting], other.protocol[setting]
        if one != two:
            return f"{words}: {one} and {two}; measure one again"
    return ""

"""Measures of a few-shot task, computed from its log-probabilities by number of shots.

- answer: bits per byte of the right answer, including its leading space;
- accuracy: the share of queries where the right candidate has the largest score (an n-way tie at the top counts 1 / n);
- calibrated: the same after subtracting each candidate's score for content-free input (Zhao et al. 2021);
- f1: macro-F1, the mean over the labels of 2 TP / (2 TP + FP + FN), with ties split as above;
- exact: every token of the answer is the most likely one, so greedy decoding would produce it;
- greedy: the same for tasks that ask for one word (LAMBADA's accuracy);
- perplexity: the exponential of the mean nats of an answer;
- contains: the greedy continuation, up to a line end or 48 tokens, contains the answer, ignoring case;
- digits: the share of digits predicted as most likely, given the right digits before them.

Queries (episodes, pairs) are the units; the draws of a query are summed within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mesa_eval.measures.few_shot import MOST, ShotScores, TaskScores
from mesa_eval.measures.nulls import null, shares
from mesa_eval.measures.scores import Measure
from mesa_eval.tasks.task import GAINING, SHUFFLED, TWICE, VARIED

UNITS = {
    "answer": "answer, bits per byte",
    "accuracy": "accuracy",
    "calibrated": "accuracy, calibrated",
    "f1": "macro-F1",
    "f1-calibrated": "macro-F1, calibrated",
    "exact": "exact match",
    "digits": "digits right",
    "greedy": "accuracy, greedy",
    "perplexity": "perplexity of the answer",
    "contains": "answer contained",
}
LIKELIHOODS = ("answer", "perplexity")  # of the same string, whatever the tokenizer
VARIANTS = {
    "": "",
    "permuted": ", labels permuted",
    "symbols": ", letters for labels",
    SHUFFLED: ", answers shuffled",
    TWICE: ", read twice",
}

Columns = tuple[list[list[float]], list[list[float]], float | None]


def task_measures(scores: TaskScores) -> list[Measure]:
    """Return every measure of a task: by number of shots, by metric, by variant and paradigm, and finally the gain.

    The task's primary metric at the primary number of shots is marked as primary. If the tokenizer cannot represent an
    answer, likelihoods of answers are omitted.
    """
    items = scores.task.fingerprint()
    measures = []
    for variant, by_shots in scores.by_variant.items():
        for own in by_shots:
            for metric in scores.task.metrics:
                if metric not in VARIED.get(variant, (metric,)) or (metric == "contains" and not own.contains):
                    continue
                if scores.lost and metric in LIKELIHOODS:
                    continue
                columns = METRICS[metric](own)
                made = _measure(scores, own, metric, variant, columns, items)
                measures.append(made)
                if metric == "accuracy":
                    measures.extend(_by_group(scores, own, made))
    return [*sorted(measures, key=lambda measure: measure.x or 0.0), *gain_measures(scores)]


def gain_measures(scores: TaskScores) -> list[Measure]:
    """Return the gain from demonstrations, in bits per answer, and the part of it due to their input-answer pairing.

    gain: bits at 0 shots minus bits at the primary number of shots; gain-pairing: bits with the answers shuffled among
    the demonstrations minus bits with the true ones, at that number of shots. A model that learns only the set of
    answers or the format has a gain, but none from the pairing.
    """
    plain = {own.shots: own for own in scores.by_variant[""] if own.key != MOST}
    if scores.task.kind not in GAINING or scores.lost or scores.primary < 1 or 0 not in plain:
        return []
    shown = plain[scores.primary]
    words = f"{scores.task.shot_words(0)} less {shown.words}"
    found = [("", words, plain[0])]
    if scores.by_variant.get(SHUFFLED):
        found.append(("pairing", f"answers shuffled less true, {shown.words}", scores.by_variant[SHUFFLED][0]))
    return [
        Measure(
            section=f"task/{scores.record.name}",
            task=scores.record.name,
            metric="gain",
            variant=variant,
            label=f"gain, {label}",
            unit="bits per answer",
            better="higher",
            digits=3,
            resampled=scores.task.unit,
            units=[str(index) for index in shown.queries],
            numerator=[
                [(float(np.mean(one)) - float(np.mean(two))) / math.log(2)]
                for one, two in zip(other.nats, shown.nats, strict=True)
            ],
            denominator=[[1.0] for _ in shown.queries],
            any_tokenizer=True,
            chance=0.0,
            items=f"{scores.task.fingerprint()}, {scores.primary} shots",
        )
        for variant, label, other in found
    ]


def _measure(scores: TaskScores, found: ShotScores, metric: str, variant: str, columns: Columns, items: str) -> Measure:
    numerator, denominator, chance = columns
    return Measure(
        section=f"task/{scores.record.name}",
        task=scores.record.name,
        metric=metric,
        variant=variant,
        shots=found.shots,
        most=found.key == MOST,
        label=found.words,
        unit=UNITS[metric] + VARIANTS[variant],
        better="lower" if metric in LIKELIHOODS else "higher",
        digits=2 if metric == "perplexity" else 3,
        resampled=scores.task.unit,
        units=[str(index) for index in found.queries],
        numerator=numerator,
        denominator=denominator,
        transform="exp" if metric == "perplexity" else "",
        any_tokenizer=metric in LIKELIHOODS and found.key != MOST,
        chance=chance,
        ceiling=found.ceiling if metric == "accuracy" else None,
        x=float(found.shots),
        primary=metric == scores.task.primary and not variant and 0 < found.shots == scores.primary,
        items=items,
    )


def _by_group(scores: TaskScores, found: ShotScores, whole: Measure) -> list[Measure]:
    """Return one measure per paradigm if there are several."""
    groups: dict[str, list[int]] = {}
    for place, index in enumerate(found.queries):
        groups.setdefault(scores.task.group(index), []).append(place)
    if len(groups) < 2:
        return []
    return [
        replace(
            whole,
            group=name,
            label=name,
            units=[whole.units[place] for place in places],
            numerator=[whole.numerator[place] for place in places],
            denominator=[whole.denominator[place] for place in places],
            chance=null(
                {model: [own[place] for place in places] for model, own in found.nulls.items()},
                [whole.denominator[place][0] for place in places],
            ),
            primary=False,
        )
        for name, places in sorted(groups.items())
    ]


def _answer(found: ShotScores) -> Columns:
    bits = [[sum(row) / math.log(2)] for row in found.nats]
    return bits, [[float(sum(row))] for row in found.bytes], None


def _mean(values: list[list[float]], chance: float | None = 0.0) -> Columns:
    return [[sum(row)] for row in values], [[float(len(row))] for row in values], chance


def _digits(found: ShotScores) -> Columns:
    # an answer is a space followed by digits, so it has one byte more than digits
    return [[float(sum(row))] for row in found.digits], [[float(sum(row) - len(row))] for row in found.bytes], 0.1


def _accuracy(found: ShotScores, calibrate: bool = False) -> Columns:
    won = _won(found, calibrate)
    right = [
        [sum(share[true] for share, true in zip(row, own, strict=True))]
        for row, own in zip(won, found.truth, strict=True)
    ]
    return right, [[float(len(row))] for row in won], null(found.nulls, [len(row) for row in won], calibrate)


def _f1(found: ShotScores, calibrate: bool = False) -> Columns:
    """Return 2 TP and 2 TP + FP + FN of each query and label; for chance, all labels are guessed equally often."""
    won = _won(found, calibrate)
    numerator, denominator = [], []
    frequency = np.zeros(len(won[0][0]))
    for row, own in zip(won, found.truth, strict=True):
        guessed = np.array(row)
        true = np.zeros_like(guessed)
        true[np.arange(len(own)), own] = 1
        frequency += true.sum(0)
        numerator.append((2 * guessed * true).sum(0).tolist())
        denominator.append((guessed + true).sum(0).tolist())
    share = frequency / frequency.sum()
    even = 1 / len(share)
    there = share > 0
    return numerator, denominator, float(np.mean(2 * share[there] * even / (share[there] + even)))


def _won(found: ShotScores, calibrate: bool) -> list[list[list[float]]]:
    """Return each candidate's share of the decision: 1 for the largest score, 1/n for each of n tied candidates."""
    return [
        [
            shares(np.array(logs) - (np.array(found.free[place][draw]) if calibrate else 0))
            for draw, logs in enumerate(row)
        ]
        for place, row in enumerate(found.ranked)
    ]


METRICS: dict[str, Callable[[ShotScores], Columns]] = {
    "answer": _answer,
    "accuracy": _accuracy,
    "calibrated": lambda found: _accuracy(found, True),
    "f1": _f1,
    "f1-calibrated": lambda found: _f1(found, True),
    "exact": lambda found: _mean(found.exact),
    "greedy": lambda found: _mean(found.exact),
    "perplexity": lambda found: _mean(found.nats, None),
    "contains": lambda found: _mean(found.contains),
    "digits": _digits,
}

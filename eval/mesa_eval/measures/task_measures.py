"""Measures of a few-shot task: what its log-probabilities say, by number of shots.

- answer: bits per byte of the right answer (its leading space counted);
- accuracy: the share of queries where the right candidate has the largest score (a tie at the top counts as one over
  the number tied);
- calibrated: the same with each score less that of the candidate behind content-free input (Zhao et al. 2021);
- f1: macro-F1, the mean over the labels of 2 TP / (2 TP + FP + FN), ties shared as above;
- exact: every token of the answer is the likeliest one, which is what greedy decoding would write;
- greedy: the same where one word is asked for (LAMBADA's accuracy);
- perplexity: the exponential of the mean nats of an answer;
- contains: what the model writes greedily, up to a line end and 48 tokens at most, contains the answer in any case;
- digits: the share of digits that are the likeliest, the right ones before them given.

Queries (episodes, pairs) are the units; the draws of a query are summed within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mesa_eval.measures.few_shot import MOST, Level, TaskScores
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
    """Return every measure of a task: by number of shots, then by metric, then by variant and paradigm; then the gain.

    The task's own primary metric, at the primary number of shots, is marked as primary. Where the tokenizer loses an
    answer there are no likelihoods of answers.
    """
    items = scores.task.fingerprint()
    measures = []
    for variant, levels in scores.levels.items():
        for level in levels:
            for metric in scores.task.metrics:
                if metric not in VARIED.get(variant, (metric,)) or (metric == "contains" and not level.contains):
                    continue
                if scores.lost and metric in LIKELIHOODS:
                    continue
                columns = METRICS[metric](level)
                made = _measure(scores, level, metric, variant, columns, items)
                measures.append(made)
                if metric == "accuracy":
                    measures.extend(_by_group(scores, level, made))
    return [*sorted(measures, key=lambda measure: measure.x or 0.0), *gain_measures(scores)]


def gain_measures(scores: TaskScores) -> list[Measure]:
    """Return what the demonstrations are worth, in bits of the answer, and how much of it their pairing gives.

    gain: bits at 0 shots less bits at the primary number of shots; gain-pairing: bits with the answers shuffled among
    the demonstrations less bits with the true ones, at that number of shots. A model that learns only which
    answers there are, or the format, gains, but nothing by the pairing.
    """
    plain = {level.shots: level for level in scores.levels[""] if level.key != MOST}
    if scores.task.kind not in GAINING or scores.lost or scores.primary < 1 or 0 not in plain:
        return []
    shown = plain[scores.primary]
    words = f"{scores.task.shot_words(0)} less {shown.words}"
    found = [("", words, plain[0])]
    if scores.levels.get(SHUFFLED):
        found.append(("pairing", f"answers shuffled less true, {shown.words}", scores.levels[SHUFFLED][0]))
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


def _measure(scores: TaskScores, level: Level, metric: str, variant: str, columns: Columns, items: str) -> Measure:
    numerator, denominator, chance = columns
    return Measure(
        section=f"task/{scores.record.name}",
        task=scores.record.name,
        metric=metric,
        variant=variant,
        shots=level.shots,
        most=level.key == MOST,
        label=level.words,
        unit=UNITS[metric] + VARIANTS[variant],
        better="lower" if metric in LIKELIHOODS else "higher",
        digits=2 if metric == "perplexity" else 3,
        resampled=scores.task.unit,
        units=[str(index) for index in level.queries],
        numerator=numerator,
        denominator=denominator,
        transform="exp" if metric == "perplexity" else "",
        any_tokenizer=metric in LIKELIHOODS and level.key != MOST,
        chance=chance,
        ceiling=level.ceiling if metric == "accuracy" else None,
        x=float(level.shots),
        primary=metric == scores.task.primary and not variant and 0 < level.shots == scores.primary,
        items=items,
    )


def _by_group(scores: TaskScores, level: Level, whole: Measure) -> list[Measure]:
    """Return one measure per paradigm where there are several."""
    groups: dict[str, list[int]] = {}
    for place, index in enumerate(level.queries):
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
                {model: [own[place] for place in places] for model, own in level.nulls.items()},
                [whole.denominator[place][0] for place in places],
            ),
            primary=False,
        )
        for name, places in sorted(groups.items())
    ]


def _answer(level: Level) -> Columns:
    bits = [[sum(row) / math.log(2)] for row in level.nats]
    return bits, [[float(sum(row))] for row in level.bytes], None


def _perplexity(level: Level) -> Columns:
    return [[sum(row)] for row in level.nats], [[float(len(row))] for row in level.nats], None


def _contains(level: Level) -> Columns:
    return [[sum(row)] for row in level.contains], [[float(len(row))] for row in level.contains], 0.0


def _exact(level: Level) -> Columns:
    return [[sum(row)] for row in level.exact], [[float(len(row))] for row in level.exact], 0.0


def _digits(level: Level) -> Columns:
    # an answer is a space and digits, so it has one byte more than digits
    return [[float(sum(row))] for row in level.digits], [[float(sum(row) - len(row))] for row in level.bytes], 0.1


def _accuracy(level: Level, calibrate: bool = False) -> Columns:
    won = _won(level, calibrate)
    right = [
        [sum(share[true] for share, true in zip(row, own, strict=True))]
        for row, own in zip(won, level.truth, strict=True)
    ]
    return right, [[float(len(row))] for row in won], null(level.nulls, [len(row) for row in won], calibrate)


def _f1(level: Level, calibrate: bool = False) -> Columns:
    """Return, for each label, 2 TP and 2 TP + FP + FN of each query; chance guesses every label equally often."""
    won = _won(level, calibrate)
    numerator, denominator = [], []
    frequency = np.zeros(len(won[0][0]))
    for row, own in zip(won, level.truth, strict=True):
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


def _won(level: Level, calibrate: bool) -> list[list[list[float]]]:
    """Return what share of the decision each candidate wins: 1 for the largest score, 1/n where n are tied."""
    return [
        [
            shares(np.array(logs) - (np.array(level.free[place][draw]) if calibrate else 0))
            for draw, logs in enumerate(row)
        ]
        for place, row in enumerate(level.ranked)
    ]


METRICS: dict[str, Callable[[Level], Columns]] = {
    "answer": _answer,
    "accuracy": _accuracy,
    "calibrated": lambda level: _accuracy(level, True),
    "f1": _f1,
    "f1-calibrated": lambda level: _f1(level, True),
    "exact": _exact,
    "greedy": _exact,
    "perplexity": _perplexity,
    "contains": _contains,
    "digits": _digits,
}

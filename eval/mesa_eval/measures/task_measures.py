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
    """Return every measure of a task: by number of shots, then by metric, then by variant and paradigm; then the gain.

    The task's own primary metric, at the primary number of shots, is marked as primary. Where the tokenizer loses an
    answer there are no likelihoods of answers.
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
    """Return what the demonstrations are worth, in bits of the answer, and how much of it their pairing gives.

    gain: bits at 0 shots less bits at the primary number of shots; gain-pairing: bits with the answers shuffled among
    the demonstrations less bits with the true ones, at that number of shots. A model that learns only which
    answers there are, or the format, gains, but nothing by the pairing.
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
    """Return one measure per paradigm where there are several."""
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
    # an answer is a space and digits, so it has one byte more than digits
    return [[float(sum(row))] for row in found.digits], [[float(sum(row) - len(row))] for row in found.bytes], 0.1


def _accuracy(found: ShotScores, calibrate: bool = False) -> Columns:
    won = _won(found, calibrate)
    right = [
        [sum(share[true] for share, true in zip(row, own, strict=True))]
        for row, own in zip(won, found.truth, strict=True)
    ]
    return right, [[float(len(row))] for row in won], null(found.nulls, [len(row) for row in won], calibrate)


def _f1(found: ShotScores, calibrate: bool = False) -> Columns:
    """Return, for each label, 2 TP and 2 TP + FP + FN of each query; chance guesses every label equally often."""
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
    """Return what share of the decision each candidate wins: 1 for the largest score, 1/n where n are tied."""
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

"""Scores of null models, which do not relate questions to answers, computed on the same queries without a model.

- even: no candidate is preferred, so 1 / candidates;
- uniform: every token has probability 1 / V, so the candidate of the fewest tokens wins;
- commonest in the pool: the candidate that is most often an answer in the pool;
- commonest candidate: the one that occurs most often among the candidates of all queries;
- always X: one label, if every query has the same candidates;
- place N: the candidate at one place of the prompt, if the prompt lists the candidates;
- most shown, least shown: the candidate that ends most or fewest lines of the prompt, if every example is such a line.

The null of an accuracy is the largest of these. It may depend on the tokenizer, through "uniform", but not on a model.
Ties are split evenly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from mesa_eval.tasks.task import Query, Task

UNIFORM = "uniform"
VERSION = 2
"""Raised with every change of the nulls, so that stored scores with older ones are not used."""
Model = Callable[[Query], list[float]]


def shares(values: Sequence[float] | np.ndarray) -> list[float]:
    """Return each candidate's share of the decision: 1 for the largest score, 1/n if n are tied."""
    scores = np.asarray(values)
    best = scores == scores.max()
    return (best / best.sum()).tolist()


def null_scores(
    task: Task, shots: int, grid: Sequence[Sequence[Query]], tokens: Callable[[Query, str], int]
) -> dict[str, list[float]]:
    """Return the score of each null model on each query, summed over its draws.

    shots: demonstrations in each prompt; grid: queries [query][draw]; tokens: the number of tokens of a candidate after
    a query's prompt.
    """
    queries = [query for row in grid for query in row]
    pool = Counter(f" {item.output}" for item in task.pool)
    asked = Counter(text for query in queries for text in query.candidates)
    models: dict[str, Model] = {
        "even": _by_text(lambda text: 0),
        UNIFORM: lambda query: [-float(tokens(query, text)) for text in query.candidates],
        "commonest in the pool": _by_text(pool.__getitem__),
        "commonest candidate": _by_text(asked.__getitem__),
    }
    if task.line_answers:
        models |= {"most shown": partial(_shown, sign=1), "least shown": partial(_shown, sign=-1)}
    same = {frozenset(query.candidates) for query in queries}
    if len(same) == 1 < len(queries):
        models |= {f"always{label}": _by_text(label.__eq__) for label in sorted(same.pop())}
    if task.listed and (shots or task.listed == "question"):
        longest = max(len(query.candidates) for query in queries)
        models |= {f"place {place + 1}": _at(place) for place in range(longest)}

    def right(model: Model, query: Query) -> float:
        return shares(model(query))[query.candidates.index(query.answer)]

    return {name: [sum(right(model, query) for query in row) for row in grid] for name, model in models.items()}


def _by_text(value: Callable[[str], float]) -> Model:
    return lambda query: [float(value(text)) for text in query.candidates]


def _at(place: int) -> Model:
    return lambda query: [float(number == place) for number in range(len(query.candidates))]


def _shown(query: Query, sign: int) -> list[float]:
    lines = query.prompt.splitlines()
    return [float(sign * sum(line.endswith(text) for line in lines)) for text in query.candidates]


def null(scores: Mapping[str, Sequence[float]], draws: Sequence[float], calibrated: bool = False) -> float:
    """Return the largest score of a null model; `draws` is the number of draws of each query.

    With calibrated scores "uniform" does not count, since it then has no preference.
    """
    return max(sum(own) / sum(draws) for name, own in scores.items() if not (calibrated and name == UNIFORM))

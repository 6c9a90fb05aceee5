"""Few-shot scores: likelihood of the answer, rank among candidates, and exact match, by number of shots.

The score of an answer is log P(answer tokens | prompt), summed, never a generation alone. Reported from it:
- bits per byte of the answer (its leading space counted), summed over queries and draws;
- accuracy: the share of queries where the right candidate has the largest score (a tie at the top counts as
  one over the number tied). Chance is one over the number of candidates;
- exact match: every token of the answer is the likeliest one, which is what greedy decoding would write.

A number of shots is left out, for this and all larger ones, when any prompt with its answer would not fit the
window (the length the model was trained on); the report names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mesa_eval.scores import Measure, TaskRecord
from mesa_eval.scoring import Likelihood, Scorer
from mesa_eval.task import Query, Task


@dataclass(frozen=True)
class FewShotProtocol:
    """Fix what is asked: shots, demonstration draws, draws on which candidates are ranked, queries and
    candidates a query (class tasks rank all their labels)."""

    shots: tuple[int, ...]
    draws: int
    rank_draws: int
    queries: int
    candidates: int


@dataclass(frozen=True)
class ShotScores:
    """Hold one number of shots: arrays [query][draw]; `right` and `chance` cover the first draws only where
    ranking was done on fewer draws."""

    shots: int
    nats: list[list[float]]
    bytes: list[int]
    exact: list[list[float]]
    right: list[list[float]]
    chance: float


@dataclass(frozen=True)
class TaskScores:
    """Hold what one task gave: its record, the queries asked and the scores by number of shots."""

    record: TaskRecord
    fingerprint: str
    queries: list[int]
    shots: list[ShotScores]


def score_task(scorer: Scorer, task: Task, protocol: FewShotProtocol, window: int, seed: int) -> TaskScores:
    """Score one task at every number of shots that fits the window.

    Raises ValueError if not even the smallest number of shots fits, or there are too few candidates.
    """
    queries = task.queries(protocol.queries, seed)
    wanted = [shots for shots in protocol.shots if shots > 0 or task.kind != "recall"]
    available = len(task.evaluation) if task.kind == "recall" else len(task.pool)
    levels: list[ShotScores] = []
    cut: list[int] = []
    counts = {True: 0, False: 0}
    for shots in wanted:
        if cut or shots > available:
            cut.append(shots)
            continue
        level = _score_level(scorer, task, protocol, queries, shots, window, seed, counts)
        if level is None:
            cut.append(shots)
        else:
            levels.append(level)
    if not levels:
        raise ValueError(f"task {task.name}: no prompt fits the window of {window} tokens of {scorer.name}")
    shown = task.query(queries[0], 0, min(level.shots for level in levels if level.shots or len(levels) == 1), 2, seed)
    record = TaskRecord(
        name=task.name,
        kind=task.kind,
        queries=len(queries),
        draws=protocol.draws,
        candidates=len(task.labels) or protocol.candidates,
        majority=task.majority(queries),
        cut=cut,
        pairs_joint=counts[True],
        pairs_apart=counts[False],
        example=shown.prompt + shown.answer,
    )
    return TaskScores(record, task.fingerprint(), queries, levels)


def task_measures(scores: TaskScores) -> list[Measure]:
    """Return, for each number of shots, bits per byte of the answer, accuracy and (without labels) exact match."""
    measures = []
    for level in scores.shots:
        bits = [[sum(row) / np.log(2)] for row in level.nats]
        sizes = [[float(size * len(row))] for size, row in zip(level.bytes, level.nats, strict=True)]
        measures.append(_measure(scores, level.shots, "answer", "answer, bits per byte", bits, sizes))
        measures.append(_share(scores, level.shots, "accuracy", "accuracy", level.right, level.chance))
        if scores.record.kind != "class":
            measures.append(_share(scores, level.shots, "exact", "exact match", level.exact, 0.0))
    return measures


def _share(scores: TaskScores, shots: int, metric: str, unit: str, values: list[list[float]], chance: float) -> Measure:
    """Make a measure of values [query][draw]: the mean over all of them, the query being the unit."""
    sums = [[float(sum(row))] for row in values]
    counts = [[float(len(row))] for row in values]
    return _measure(scores, shots, metric, unit, sums, counts, chance)


def _measure(
    scores: TaskScores,
    shots: int,
    metric: str,
    unit: str,
    numerator: list[list[float]],
    denominator: list[list[float]],
    chance: float | None = None,
) -> Measure:
    section = f"task/{scores.record.name}"
    return Measure(
        section=section,
        key=f"{section}/{shots}/{metric}",
        label=f"{shots} shot{'s' if shots != 1 else ''}",
        unit=unit,
        better="lower" if metric == "answer" else "higher",
        digits=3,
        resampled="query",
        units=[str(index) for index in scores.queries],
        numerator=numerator,
        denominator=denominator,
        any_tokenizer=metric == "answer",
        chance=chance,
        x=float(shots),
        items=scores.fingerprint,
    )


def _score_level(
    scorer: Scorer,
    task: Task,
    protocol: FewShotProtocol,
    queries: list[int],
    shots: int,
    window: int,
    seed: int,
    counts: dict[bool, int],
) -> ShotScores | None:
    """Score one number of shots; None if a prompt does not fit."""
    grid = [
        [task.query(index, draw, shots, protocol.candidates, seed) for draw in range(protocol.draws)]
        for index in queries
    ]
    wanted: dict[tuple[str, str], None] = {}
    for row in grid:
        for draw, query in enumerate(row):
            wanted[query.prompt, query.answer] = None
            if draw < protocol.rank_draws:
                wanted.update(dict.fromkeys((query.prompt, choice) for choice in query.candidates))
    pairs = scorer.encode_pairs(list(wanted))
    if max(len(pair.tokens) - 1 for pair in pairs) > window:
        return None
    for pair in pairs:
        counts[pair.joint] += 1
    scored = scorer.likelihoods(pairs, f"{task.name}, {shots} shots")
    table = dict(zip(wanted, scored, strict=True))
    ranked = [row[: protocol.rank_draws] for row in grid]
    return ShotScores(
        shots=shots,
        nats=[[-table[query.prompt, query.answer].nats for query in row] for row in grid],
        bytes=[len(row[0].answer.encode()) for row in grid],
        exact=[[float(table[query.prompt, query.answer].greedy) for query in row] for row in grid],
        right=[[_credit(query, table) for query in row] for row in ranked],
        chance=float(np.mean([1 / len(query.candidates) for row in ranked for query in row])),
    )


def _credit(query: Query, table: dict[tuple[str, str], Likelihood]) -> float:
    scores = [table[query.prompt, choice].nats for choice in query.candidates]
    best = max(scores)
    tied = [choice for choice, score in zip(query.candidates, scores, strict=True) if score == best]
    return 1 / len(tied) if query.answer in tied else 0.0

"""Ask a model a few-shot task: log P of answers and candidates behind prompts, by number of shots.

The score of an answer is log P(answer tokens | prompt), summed, never a generation alone. All numbers of shots are read
in one go, each set of demonstrations once (see `batches.py`). A number of shots is left out, for this and all larger
ones, when any prompt with its answer would not fit the window (the length the model was trained on) or the items run
out; the report names them. What the scores are turned into is in `task_measures.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesa_eval.scores import TaskRecord
from mesa_eval.scoring import Likelihood, Pair, Scorer
from mesa_eval.task import FewShotProtocol, Query, Task

MOST = "most"


class CannotAskError(ValueError):
    """Say in one line why a task cannot be asked of a model."""


@dataclass(frozen=True)
class Level:
    """Hold one number of shots of one variant: arrays [query][draw].

    key: the number of shots, or "most" where it is as many as fit; nats: of the answer; bytes: of the answer;
    exact: whether greedy decoding writes it; ranked: log P of each candidate, on the first draws only where ranking
    is done on fewer; truth: which candidate is right; free: log P of each candidate behind content-free input, by
    draw, where the task has one; digits: how many digits of the answer the likeliest tokens hold.
    """

    key: str
    shots: int
    words: str
    nats: list[list[float]]
    bytes: list[list[int]]
    exact: list[list[float]]
    ranked: list[list[list[float]]]
    truth: list[list[int]]
    free: list[list[float]]
    digits: list[list[int]]


@dataclass(frozen=True)
class TaskScores:
    """Hold what one task gave: its record, the queries asked, and levels by variant ("" is the plain one)."""

    task: Task
    record: TaskRecord
    queries: list[int]
    levels: dict[str, list[Level]]


@dataclass
class _Asked:
    """Hold what is asked at one number of shots: queries [query][draw], content-free ones, encoded pairs."""

    key: str
    shots: int
    words: str
    grid: list[list[Query]]
    free: list[Query]
    ranks: int
    pairs: dict[tuple[str, str], Pair]
    shared: list[str]


def score_task(scorer: Scorer, task: Task, protocol: FewShotProtocol, window: int, seed: int) -> TaskScores:
    """Score one task at every number of shots that fits the window.

    Raises CannotAskError if not even the smallest number of shots fits, or an answer cannot be encoded.
    """
    queries = task.queries(protocol, seed)
    cut: set[int] = set()
    asked: dict[str, list[_Asked]] = {}
    for variant, own in task.variants(protocol, seed).items():
        asked[variant] = _fitting(scorer, own, protocol, queries, window, seed, cut)
    if not any(asked.values()):
        raise CannotAskError(f"no prompt fits the window of {window} tokens")
    flat = [level for levels in asked.values() for level in levels]
    pairs = [pair for level in flat for pair in level.pairs.values()]
    scored = iter(scorer.likelihoods(pairs, task.name, [label for level in flat for label in level.shared]))
    levels = {
        variant: [_level(scorer, level, dict(zip(level.pairs, scored, strict=False))) for level in own]
        for variant, own in asked.items()
    }
    shown = next((level for level in flat if level.shots), flat[0]).grid[0][0]
    record = TaskRecord(
        name=task.name,
        kind=task.kind,
        queries=len(queries),
        draws=task.draws(protocol),
        candidates=max(len(query.candidates) for level in flat for row in level.grid for query in row),
        majority=task.majority(queries),
        cut=sorted(cut),
        pairs_joint=sum(pair.joint for pair in pairs),
        pairs_apart=sum(not pair.joint for pair in pairs),
        example=(shown.prompt + shown.answer).lstrip(),
    )
    return TaskScores(task, record, queries, levels)


def _fitting(
    scorer: Scorer,
    task: Task,
    protocol: FewShotProtocol,
    queries: list[int],
    window: int,
    seed: int,
    cut: set[int],
) -> list[_Asked]:
    """Encode every number of shots that fits; those that do not are added to `cut`."""
    fitting: list[_Asked] = []
    for shots in task.levels(protocol):
        level = None
        if shots <= task.most_shots and not any(shots > other for other in cut):
            level = _encode(scorer, task, protocol, queries, shots, window, seed)
        if level is None:
            cut.add(shots)
        else:
            fitting.append(level)
    if task.as_many_as_fit and fitting:
        most = _most_that_fit(scorer, task, protocol, queries, window, seed, fitting[-1].shots)
        if most is not None:
            fitting.append(most)
    return fitting


def _most_that_fit(
    scorer: Scorer, task: Task, protocol: FewShotProtocol, queries: list[int], window: int, seed: int, known: int
) -> _Asked | None:
    """Find the largest number of shots that fits, more than `known`, by halving; None if there is none."""
    low, high = known, min(protocol.most_shots, task.most_shots)
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        level = _encode(scorer, task, protocol, queries, middle, window, seed)
        if level is None:
            high = middle - 1
        else:
            low, best = middle, level
    if best is not None:
        best.key, best.words = MOST, f"{best.words}, the most that fit"
    return best


def _encode(
    scorer: Scorer, task: Task, protocol: FewShotProtocol, queries: list[int], shots: int, window: int, seed: int
) -> _Asked | None:
    """Encode everything that is asked at one number of shots; None if a prompt with a continuation does not fit."""
    draws, ranks = task.draws(protocol), task.rank_draws(protocol) if "accuracy" in task.metrics else 0
    grid = [[task.query(index, draw, shots, protocol.candidates, seed) for draw in range(draws)] for index in queries]
    free = [query for draw in range(ranks) if (query := task.free_query(draw, shots, seed)) is not None]
    wanted: dict[tuple[str, str], str] = {}
    for row in grid:
        for draw, query in enumerate(row):
            continuations = query.candidates if draw < ranks else (query.answer,)
            wanted.update(dict.fromkeys(((query.prompt, text) for text in continuations), _label(query)))
    for query in free:
        wanted.update(dict.fromkeys(((query.prompt, text) for text in query.candidates), _label(query)))
    try:
        pairs = scorer.encode_pairs(list(wanted))
    except ValueError as error:
        raise CannotAskError(str(error)) from error
    if max(len(pair.tokens) - 1 for pair in pairs) > window:
        return None
    table = dict(zip(wanted, pairs, strict=True))
    return _Asked(str(shots), shots, task.shot_words(shots), grid, free, ranks, table, list(wanted.values()))


def _label(query: Query) -> str:
    """Return what a query's rows are grouped by: the demonstrations where they are most of the prompt, else all."""
    return query.shared if 2 * len(query.shared) > len(query.prompt) else query.prompt


def _level(scorer: Scorer, asked: _Asked, table: dict[tuple[str, str], Likelihood]) -> Level:
    def logs(query: Query) -> list[float]:
        return [table[query.prompt, text].nats for text in query.candidates]

    def digits(query: Query) -> int:
        pair = asked.pairs[query.prompt, query.answer]
        return digits_right(scorer, pair.tokens[pair.start :], table[query.prompt, query.answer].best)

    ranked = [row[: asked.ranks] for row in asked.grid]
    return Level(
        key=asked.key,
        shots=asked.shots,
        words=asked.words,
        nats=[[-table[query.prompt, query.answer].nats for query in row] for row in asked.grid],
        bytes=[[len(query.answer.encode()) for query in row] for row in asked.grid],
        exact=[[float(table[query.prompt, query.answer].greedy) for query in row] for row in asked.grid],
        ranked=[[logs(query) for query in row] for row in ranked],
        truth=[[query.candidates.index(query.answer) for query in row] for row in ranked],
        free=[logs(query) for query in asked.free],
        digits=[[digits(query) for query in row] for row in asked.grid],
    )


def digits_right(scorer: Scorer, tokens: list[int], likeliest: tuple[int, ...]) -> int:
    """Count the digits of an answer that stand in the same place of the likeliest tokens, right ones before given."""
    right = 0
    for token, guess in zip(tokens, likeliest, strict=True):
        written, guessed = scorer.tokenizer.decode([token]), scorer.tokenizer.decode([guess])
        right += sum(a == b for a, b in zip(written, guessed, strict=False) if a.isdigit())
    return right

"""Ask a model a few-shot task: log P of answers and candidates behind prompts, by number of shots.

The score of an answer is log P(answer tokens | prompt), summed, never a generation alone; recall is asked both ways.
All numbers of shots are read in one go, and a query's demonstrations once for all its candidates (see `batches.py`).
A number of shots is left out, for this and all larger ones, when any prompt with its answer would not fit the window
(the length the model was trained on) or the items run out; the report names them. What the scores are turned into is
in `task_measures.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mesa_eval.measures.nulls import null_scores
from mesa_eval.measures.scores import TaskRecord
from mesa_eval.reading.encoding import Pair
from mesa_eval.reading.reader import Likelihood, Reader
from mesa_eval.tasks.task import FewShotSizes, Query, Task

MOST = "most"
WRITTEN = 48  # tokens written at most where an answer is looked for in what a model writes (Arora et al. 2024, Based)
STOP = "\n"
Table = dict[tuple[str, str], Likelihood]
T = TypeVar("T")


class CannotAskError(ValueError):
    """The reason, in one line, why a task cannot be asked of a model."""


@dataclass(frozen=True)
class Level:
    """One number of shots of one variant: arrays [query][draw].

    queries: what was asked, in order; key: the number of shots, or "most" where it is as many as fit; nats: of the
    answer; bytes: of the answer; exact: whether greedy decoding writes it; ranked: log P of each candidate; truth:
    which candidate is right; free: log P of each candidate behind content-free input, where the task has one; digits:
    how many digits of the answer the likeliest tokens hold; written: what the model writes, and contains: whether the
    answer is in it, where the task asks that; nulls: what models score that read no demonstrations, by query, see
    `nulls.py`; ceiling: the accuracy of `Task.ceiling`.
    """

    queries: list[int]
    key: str
    shots: int
    words: str
    nats: list[list[float]]
    bytes: list[list[int]]
    exact: list[list[float]]
    ranked: list[list[list[float]]]
    truth: list[list[int]]
    free: list[list[list[float]]]
    digits: list[list[int]]
    written: list[list[str]] = field(default_factory=list)
    contains: list[list[float]] = field(default_factory=list)
    nulls: dict[str, list[float]] = field(default_factory=dict)
    ceiling: float | None = None


@dataclass(frozen=True)
class TaskScores:
    """What one task gave: its record, the queries asked, and levels by variant ("" is the plain one).

    primary: the number of shots that counts, the most that fit up to the sizes's; left_out: by variant, how many of
    the queries are longer than the window, in a task that goes on without those, or all where a variant does not fit;
    lost: how many different answers do not come back from their tokens, of `answers`.
    """

    task: Task
    record: TaskRecord
    queries: list[int]
    levels: dict[str, list[Level]]
    primary: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    answers: int = 0


@dataclass
class _Asked:
    """What is asked at one number of shots: queries and content-free ones [query][draw], encoded pairs."""

    task: Task
    queries: list[int]
    key: str
    shots: int
    words: str
    grid: list[list[Query]]
    free: list[list[Query]]
    pairs: dict[tuple[str, str], Pair]
    shared: list[str]
    ceiling: float | None

    def queries_in_turn(self) -> list[Query]:
        """Return the queries one after another, those of one item together."""
        return [query for row in self.grid for query in row]


def score_task(reader: Reader, task: Task, sizes: FewShotSizes, window: int, seed: int) -> TaskScores:
    """Score one task at every number of shots that fits the window.

    Raises CannotAskError if not even the smallest number of shots fits, or an answer cannot be encoded.
    """
    chosen = task.queries(sizes, seed)
    queries = _short_enough(reader, task, chosen, window, seed)
    plain = _fitting(reader, task, sizes, queries, window, seed) if queries else []
    if not plain:
        raise CannotAskError(f"no prompt fits the window of {window} tokens")
    shots = [level.shots for level in plain if level.key != MOST]
    primary = max(count for count in shots if count <= max(sizes.primary_shots, shots[0]))
    asked, left_out = {"": plain}, {"": len(chosen) - len(queries)}
    for other in task.variants(primary, sizes, seed):
        short = _short_enough(reader, other, queries, window, seed)
        level = _encode(reader, other, sizes, short, primary, window, seed) if short else None
        asked[other.variant] = [level] if level else []
        left_out[other.variant] = len(queries) - (len(short) if level else 0)
    levels = _answer(reader, task, asked, window)
    flat = [level for own in asked.values() for level in own]
    record = _record(task, sizes, queries, flat, plain)
    answers = sorted({query.answer for level in flat for query in level.queries_in_turn()})
    lost = reader.lost(answers, reader.encode_all(answers))
    return TaskScores(task, record, queries, levels, primary, left_out, lost, len(answers))


def _answer(reader: Reader, task: Task, asked: dict[str, list[_Asked]], window: int) -> dict[str, list[Level]]:
    """Read everything that is asked in one go, and return the levels of each variant."""
    flat = [level for own in asked.values() for level in own]
    pairs = [pair for level in flat for pair in level.pairs.values()]
    scored = iter(reader.likelihoods(pairs, task.name, [label for level in flat for label in level.shared]))
    tables = [dict(zip(level.pairs, scored, strict=False)) for level in flat]
    written = _write(reader, task, flat, tables, window)
    levels = iter([_level(reader, level, table, written) for level, table in zip(flat, tables, strict=True)])
    return {variant: [next(levels) for _ in own] for variant, own in asked.items()}


def _record(
    task: Task,
    sizes: FewShotSizes,
    queries: list[int],
    asked: Sequence[_Asked],
    plain: Sequence[_Asked],
) -> TaskRecord:
    pairs = [pair for level in asked for pair in level.pairs.values()]
    shown = next((level for level in asked if level.shots), asked[0]).grid[0][0]
    return TaskRecord(
        name=task.name,
        kind=task.kind,
        queries=len(queries),
        draws=task.draws(sizes),
        candidates=max(len(query.candidates) for level in asked for query in level.queries_in_turn()),
        majority=task.majority(queries),
        cut=sorted(set(task.levels(sizes)) - {level.shots for level in plain}),
        pairs_joint=sum(pair.joint for pair in pairs),
        pairs_apart=sum(not pair.joint for pair in pairs),
        example=(shown.prompt + shown.answer).lstrip(),
    )


def _short_enough(reader: Reader, task: Task, queries: list[int], window: int, seed: int) -> list[int]:
    """Return the queries that fit the window with their answers, all where the task leaves none out."""
    if not task.leaves_out_long:
        return queries
    asked = [task.query(index, 0, 0, 1, seed) for index in queries]
    pairs = _encoded(reader, [(query.prompt, query.answer) for query in asked])
    return [index for index, pair in zip(queries, pairs, strict=True) if len(pair.tokens) - 1 <= window]


def _encoded(reader: Reader, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    try:
        return reader.encode_pairs(pairs)
    except ValueError as error:
        raise CannotAskError(str(error)) from error


def _write(
    reader: Reader,
    task: Task,
    asked: Sequence[_Asked],
    tables: Sequence[Table],
    window: int,
) -> dict[str, str]:
    """Return what the model writes behind each prompt of a task that asks for it.

    Where every token of an answer was the likeliest, the answer is what the model would write, and it is not asked to.
    """
    written: dict[str, str] = {}
    prompts: dict[str, None] = {}
    if not reader.writes():
        return written
    for level, table in zip(asked, tables, strict=True):
        for query in level.queries_in_turn() if "contains" in level.task.scored else ():
            pair, found = level.pairs[query.prompt, query.answer], table[query.prompt, query.answer]
            if found.greedy and STOP not in query.answer and len(pair.tokens) - pair.start <= WRITTEN:
                written[query.prompt] = query.answer
            else:
                prompts[query.prompt] = None
    texts = reader.generate(list(prompts), WRITTEN, STOP, f"{task.name}, written", window) if prompts else []
    return {**written, **dict(zip(prompts, texts, strict=True))}


def _fitting(
    reader: Reader,
    task: Task,
    sizes: FewShotSizes,
    queries: list[int],
    window: int,
    seed: int,
) -> list[_Asked]:
    """Encode every number of shots, up to the first that does not fit."""
    fitting: list[_Asked] = []
    for shots in task.levels(sizes):
        fits = shots <= task.most_shots
        level = _encode(reader, task, sizes, queries, shots, window, seed) if fits else None
        if level is None:
            break
        fitting.append(level)
    if task.as_many_as_fit and fitting:
        most = _most_that_fit(reader, task, sizes, queries, window, seed, fitting[-1].shots)
        if most is not None:
            fitting.append(most)
    return fitting


def _most_that_fit(
    reader: Reader, task: Task, sizes: FewShotSizes, queries: list[int], window: int, seed: int, known: int
) -> _Asked | None:
    """Find the largest number of shots that fits, more than `known`, by halving; None if there is none."""
    low, high = known, min(sizes.most_shots, task.most_shots)
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        level = _encode(reader, task, sizes, queries, middle, window, seed)
        if level is None:
            high = middle - 1
        else:
            low, best = middle, level
    if best is not None:
        best.key, best.words = MOST, f"{best.words}, the most that fit"
    return best


def _encode(
    reader: Reader, task: Task, sizes: FewShotSizes, queries: list[int], shots: int, window: int, seed: int
) -> _Asked | None:
    """Encode everything that is asked at one number of shots; None if a prompt with a continuation does not fit."""
    draws = range(task.draws(sizes))
    grid = [[task.query(index, draw, shots, sizes.candidates, seed) for draw in draws] for index in queries]
    twins = [[task.free_query(index, draw, shots, seed) for draw in draws] for index in queries]
    free = [own for row in twins if (own := [twin for twin in row if twin is not None])]
    wanted: dict[tuple[str, str], str] = {}
    for query in (query for row in [*grid, *free] for query in row):
        continuations = query.candidates if "accuracy" in task.scored else (query.answer,)
        wanted.update(dict.fromkeys(((query.prompt, text) for text in continuations), _label(query, bool(free))))
    pairs = _encoded(reader, list(wanted))
    if max(len(pair.tokens) - 1 for pair in pairs) > window:
        return None
    table = dict(zip(wanted, pairs, strict=True))
    ceiling = task.ceiling(queries, shots, seed)
    words, labels = task.shot_words(shots), list(wanted.values())
    return _Asked(task, queries, str(shots), shots, words, grid, free, table, labels, ceiling)


def _label(query: Query, twins: bool) -> str:
    """Return what a query's rows are grouped by: its prompt, or what a content-free twin shares where that is most."""
    return query.shared if twins and 2 * len(query.shared) > len(query.prompt) else query.prompt


def _level(reader: Reader, asked: _Asked, table: Table, written: dict[str, str]) -> Level:
    def logs(query: Query) -> list[float]:
        return [table[query.prompt, text].nats for text in query.candidates]

    def digits(query: Query) -> int:
        pair = asked.pairs[query.prompt, query.answer]
        return digits_right(reader, pair.tokens[pair.start :], scored(query).best)

    def tokens(query: Query, text: str) -> int:
        pair = asked.pairs[query.prompt, text]
        return len(pair.tokens) - pair.start

    def each(grid: list[list[Query]], value: Callable[[Query], T]) -> list[list[T]]:
        return [[value(query) for query in row] for row in grid]

    def scored(query: Query) -> Likelihood:
        return table[query.prompt, query.answer]

    grid = asked.grid
    texts = grid if written and "contains" in asked.task.scored else []
    ranked = grid if "accuracy" in asked.task.scored else []
    return Level(
        queries=asked.queries,
        key=asked.key,
        shots=asked.shots,
        words=asked.words,
        nats=each(grid, lambda query: -scored(query).nats),
        bytes=each(grid, lambda query: len(query.answer.encode())),
        exact=each(grid, lambda query: float(scored(query).greedy)),
        ranked=each(ranked, logs),
        truth=each(ranked, lambda query: query.candidates.index(query.answer)),
        free=each(asked.free, logs),
        digits=each(grid, digits),
        written=each(texts, lambda query: written[query.prompt]),
        contains=each(texts, lambda query: contains(written[query.prompt], query.answer)),
        nulls=null_scores(asked.task, grid, tokens) if ranked else {},
        ceiling=asked.ceiling,
    )


def contains(text: str, answer: str) -> float:
    """Return 1 if the text contains the answer, in any case, else 0: the measure of Arora et al. (2024)."""
    return float(answer.strip().lower() in text.lower())


def digits_right(reader: Reader, tokens: list[int], likeliest: tuple[int, ...]) -> int:
    """Count the digits of an answer that stand in the same place of the likeliest tokens, right ones before given."""
    right = 0
    for token, guess in zip(tokens, likeliest, strict=True):
        written, guessed = reader.tokenizer.decode([token]), reader.tokenizer.decode([guess])
        right += sum(a == b for a, b in zip(written, guessed, strict=False) if a.isdigit())
    return right

"""Score a model on a few-shot task: log P of answers and candidates after prompts, by number of shots.

The score of an answer is the summed log P(answer tokens | prompt); recall tasks also use generation.
All numbers of shots are read together, and a query's demonstrations once for all its candidates (see `batches.py`).
A number of shots, and all larger ones, are left out if any prompt with its answer does not fit into the window
(the length the model was trained on) or the items run out; the report names them. `task_measures.py` turns the scores
into measures.
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
    """A task cannot be asked of a model; the message is the reason, in one line."""


@dataclass(frozen=True)
class ShotScores:
    """Scores at one number of shots of one variant: arrays [query][draw].

    queries: the queries in order; key: the number of shots, or "most" for as many as fit; nats: of the
    answer; bytes: of the answer; exact: whether greedy decoding writes it; ranked: log P of each candidate; truth:
    index of the right candidate; free: log P of each candidate after content-free input, if the task has one; digits:
    how many digits of the answer the likeliest tokens get right; written: the model's generation, and contains:
    whether the answer is in it, if the task uses generation; nulls: scores of the null models by query, see
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
    """The scores of one task: its record, the queries, and for each variant ("" is the plain one) the scores by shots.

    primary: the number of shots of the primary measure, the most that fit up to the suite's; left_out: by variant, the
    number of queries that exceed the window and are skipped, or all if a variant does not fit;
    lost: how many of the `answers` different answers are not restored by decoding their tokens.
    """

    task: Task
    record: TaskRecord
    queries: list[int]
    by_variant: dict[str, list[ShotScores]]
    primary: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    answers: int = 0


@dataclass
class _Prompts:
    """The prompts at one number of shots: queries and content-free queries [query][draw], and encoded pairs."""

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
    """Score one task at every number of shots that fits into the window.

    Raises CannotAskError if not even the smallest number of shots fits, or an answer cannot be encoded.
    """
    encoder = _PromptEncoder(reader, sizes, window, seed)
    chosen = task.queries(sizes, seed)
    queries = encoder.short_enough(task, chosen)
    plain = encoder.fitting(task, queries) if queries else []
    if not plain:
        few = f"at {task.shot_words(task.shots(sizes)[0])} a prompt exceeds {window} tokens or there are too few items"
        raise CannotAskError(few if queries else f"no prompt fits the window of {window} tokens")
    shots = [prompts.shots for prompts in plain if prompts.key != MOST]
    primary = max(count for count in shots if count <= max(sizes.primary_shots, shots[0]))
    asked, left_out = {"": plain}, {"": len(chosen) - len(queries)}
    for other in task.variants(primary, sizes, seed):
        short = encoder.short_enough(other, queries)
        prompts = encoder.encode(other, short, primary) if short else None
        asked[other.variant] = [prompts] if prompts else []
        left_out[other.variant] = len(queries) - (len(short) if prompts else 0)
    flat = [prompts for own in asked.values() for prompts in own]
    scores = iter(_answer(reader, task, flat, window))
    by_variant = {variant: [next(scores) for _ in own] for variant, own in asked.items()}
    answers = sorted({query.answer for prompts in flat for query in prompts.queries_in_turn()})
    lost = reader.lost(answers, reader.encode_all(answers))
    record = _record(task, sizes, queries, flat, plain)
    return TaskScores(task, record, queries, by_variant, primary, left_out, lost, len(answers))


def _answer(reader: Reader, task: Task, asked: Sequence[_Prompts], window: int) -> list[ShotScores]:
    """Score all prompts together."""
    pairs = [pair for prompts in asked for pair in prompts.pairs.values()]
    scored = iter(reader.likelihoods(pairs, task.name, [label for prompts in asked for label in prompts.shared]))
    tables = [dict(zip(prompts.pairs, scored, strict=False)) for prompts in asked]
    written = _write(reader, task, asked, tables, window)
    return [_scores(reader, prompts, table, written) for prompts, table in zip(asked, tables, strict=True)]


def _record(
    task: Task, sizes: FewShotSizes, queries: list[int], asked: Sequence[_Prompts], plain: Sequence[_Prompts]
) -> TaskRecord:
    shown = next((prompts for prompts in asked if prompts.shots), asked[0]).grid[0][0]
    return TaskRecord(
        name=task.name,
        kind=task.kind,
        queries=len(queries),
        draws=task.draws(sizes),
        candidates=max(len(query.candidates) for prompts in asked for query in prompts.queries_in_turn()),
        majority=task.majority(queries),
        cut=sorted(set(task.shots(sizes)) - {prompts.shots for prompts in plain}),
        example=(shown.prompt + shown.answer).lstrip(),
    )


def _write(
    reader: Reader, task: Task, asked: Sequence[_Prompts], tables: Sequence[Table], window: int
) -> dict[str, str]:
    """Return the model's generation after each prompt, for tasks that use it.

    If every token of an answer was the likeliest, the model would write the answer, so generation is skipped.
    """
    written: dict[str, str] = {}
    unknown: dict[str, None] = {}
    if not reader.writes():
        return written
    for prompts, table in zip(asked, tables, strict=True):
        for query in prompts.queries_in_turn() if "contains" in prompts.task.scored else ():
            pair, found = prompts.pairs[query.prompt, query.answer], table[query.prompt, query.answer]
            if found.greedy and STOP not in query.answer and len(pair.tokens) - pair.start <= WRITTEN:
                written[query.prompt] = query.answer
            else:
                unknown[query.prompt] = None
    texts = reader.generate(list(unknown), WRITTEN, STOP, f"{task.name}, written", window) if unknown else []
    return {**written, **dict(zip(unknown, texts, strict=True))}


@dataclass(frozen=True)
class _PromptEncoder:
    """Encodes the prompts of a task."""

    reader: Reader
    sizes: FewShotSizes
    window: int
    seed: int

    def short_enough(self, task: Task, queries: list[int]) -> list[int]:
        """Return the queries that fit into the window with their answers; all if the task may not skip any."""
        if not task.leaves_out_long:
            return queries
        asked = [task.query(index, 0, 0, 1, self.seed) for index in queries]
        pairs = self._pairs([(query.prompt, query.answer) for query in asked])
        return [index for index, pair in zip(queries, pairs, strict=True) if len(pair.tokens) - 1 <= self.window]

    def fitting(self, task: Task, queries: list[int]) -> list[_Prompts]:
        """Encode every number of shots, up to the first that does not fit."""
        fitting: list[_Prompts] = []
        for shots in task.shots(self.sizes):
            prompts = self.encode(task, queries, shots) if shots <= task.most_shots else None
            if prompts is None:
                break
            fitting.append(prompts)
        if task.as_many_as_fit and fitting:
            most = self._most_that_fit(task, queries, fitting[-1].shots)
            if most is not None:
                fitting.append(most)
        return fitting

    def _most_that_fit(self, task: Task, queries: list[int], known: int) -> _Prompts | None:
        """Find the largest number of shots above `known` that fits, by bisection; None if there is none."""
        low, high = known, min(self.sizes.most_shots, task.most_shots)
        best = None
        while low < high:
            middle = (low + high + 1) // 2
            prompts = self.encode(task, queries, middle)
            if prompts is None:
                high = middle - 1
            else:
                low, best = middle, prompts
        if best is not None:
            best.key, best.words = MOST, f"{best.words}, the most that fit"
        return best

    def encode(self, task: Task, queries: list[int], shots: int) -> _Prompts | None:
        """Encode all prompts at one number of shots; None if a prompt with a continuation does not fit."""
        draws, candidates = range(task.draws(self.sizes)), self.sizes.candidates
        grid = [[task.query(index, draw, shots, candidates, self.seed) for draw in draws] for index in queries]
        content_free = [[task.free_query(index, draw, shots, self.seed) for draw in draws] for index in queries]
        free = [own for row in content_free if (own := [query for query in row if query is not None])]
        wanted: dict[tuple[str, str], str] = {}
        for query in (query for row in [*grid, *free] for query in row):
            continuations = query.candidates if "accuracy" in task.scored else (query.answer,)
            wanted.update(dict.fromkeys(((query.prompt, text) for text in continuations), _label(query, bool(free))))
        pairs = self._pairs(list(wanted))
        if max(len(pair.tokens) - 1 for pair in pairs) > self.window:
            return None
        table = dict(zip(wanted, pairs, strict=True))
        ceiling = task.ceiling(queries, shots, self.seed)
        words, labels = task.shot_words(shots), list(wanted.values())
        return _Prompts(task, queries, str(shots), shots, words, grid, free, table, labels, ceiling)

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        try:
            return self.reader.encode_pairs(pairs)
        except ValueError as error:
            raise CannotAskError(str(error)) from error


def _label(query: Query, free: bool) -> str:
    """Return the key for grouping a query's rows: its prompt, or for content-free queries their long shared prefix."""
    return query.shared if free and 2 * len(query.shared) > len(query.prompt) else query.prompt


def _scores(reader: Reader, asked: _Prompts, table: Table, written: dict[str, str]) -> ShotScores:
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
    return ShotScores(
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
        nulls=null_scores(asked.task, asked.shots, grid, tokens) if ranked else {},
        ceiling=asked.ceiling,
    )


def contains(text: str, answer: str) -> float:
    """Return 1 if the text contains the answer, ignoring case, else 0: the measure of Arora et al. (2024)."""
    return float(answer.strip().lower() in text.lower())


def digits_right(reader: Reader, tokens: list[int], likeliest: tuple[int, ...]) -> int:
    """Count the digits of an answer that match the likeliest tokens, given the right tokens before."""
    right = 0
    for token, guess in zip(tokens, likeliest, strict=True):
        written, guessed = reader.tokenizer.decode([token]), reader.tokenizer.decode([guess])
        right += sum(a == b for a, b in zip(written, guessed, strict=False) if a.isdigit())
    return right

"""Few-shot tasks: items, prompts, demonstrations and distractors, all independent of any model.

All choices depend only on the seed, the task's name and the text, so every model, whatever its tokenizer, gets the
same queries, demonstrations and candidates. `Task` is a task of pairs; each other kind is a subclass in
`mesa_eval/tasks/`, which states its scores (`metrics`) and the one that enters the predeclared average (`primary`).
`mesa_eval.tasks.find_tasks` turns a name into tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np

from mesa_eval.reading.documents import stable_number
from mesalm.wording import plural

QUESTION, ANSWER = "{input}", " {output}"
SHUFFLED = "shuffled"
TWICE = "twice"
GAINING = ("pair", "choice", "class", "recall")
"""Kinds that are also asked with shuffled demonstration answers, and whose gains are pooled."""


VARIED = {
    "permuted": ("accuracy", "calibrated"),
    "symbols": ("accuracy", "calibrated"),
    SHUFFLED: ("answer", "accuracy", "calibrated"),
    TWICE: ("answer", "accuracy", "contains", "exact"),
}
"""Metrics scored for each variant of a task."""


@dataclass(frozen=True)
class FewShotSizes:
    """Sizes of few-shot tasks, fixed before any model is seen.

    shots: numbers of demonstrations; draws: sets of demonstrations per query; queries: items asked; candidates: number
    of answers ranked; class_shots: demonstrations per label of a classification; entries: lines of a phonebook;
    episodes, ways, episode_shots: number of N-way episodes, N, and demonstrations per class; group_pairs: minimal
    pairs per paradigm (None: all); passages: texts that ask for a value or their last word (None: all);
    scramble_shots: shots of word scrambles, in addition to as many as fit, at most `most_shots`; variants: task
    variants, asked only at the primary number of shots; primary_shots: the average and the gain use the largest number
    of shots that fits, up to this; named_only: kinds asked only if their file is named, not as part of a folder.
    """

    shots: tuple[int, ...]
    draws: int
    queries: int
    candidates: int
    class_shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    entries: tuple[int, ...] = (4, 8, 16, 32, 64)
    episodes: int = 40
    ways: int = 5
    episode_shots: tuple[int, ...] = (1, 2, 4, 8)
    group_pairs: int | None = 10
    passages: int | None = 100
    scramble_shots: tuple[int, ...] = (0, 1, 10)
    most_shots: int = 100
    variants: tuple[str, ...] = ("permuted", "symbols", SHUFFLED, TWICE)
    primary_shots: int = 8
    named_only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One question and its answer; `group` names the paradigm of a minimal pair."""

    input: str
    output: str
    group: str = ""


@dataclass(frozen=True)
class Query:
    """One prompt: its text, the right continuation, and all candidates (including the right one).

    shared: the part of the prompt before the question.
    """

    prompt: str
    answer: str
    candidates: tuple[str, ...] = ()
    shared: str = ""


@dataclass(frozen=True)
class Task:
    """A task of pairs, which ranks the right answer among answers of other evaluation items.

    pool: items used as demonstrations; evaluation: items used as queries; header: text at the start of every prompt;
    template: format of one item, with `{input}` and ` {output}`; variant: "" for the plain task.
    """

    name: str
    pool: tuple[Item, ...] = ()
    evaluation: tuple[Item, ...] = ()
    notes: tuple[str, ...] = field(default=())
    header: str = ""
    template: str = "Q: {input}\nA: {output}\n\n"
    variant: str = ""

    kind: ClassVar[str] = "pair"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy")
    primary: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "query"
    listed: ClassVar[str] = ""  # where a prompt lists the candidates, in the query's order: "question", "shots" or ""
    drawn_once: ClassVar[bool] = False  # whether each query has its own demonstrations, so that one draw suffices
    line_answers: ClassVar[bool] = False  # whether each example is a line that ends with its answer
    as_many_as_fit: ClassVar[bool] = False
    leaves_out_long: ClassVar[bool] = False

    def fingerprint(self) -> str:
        """Return the sha256 over kind, wording and items."""
        fields = {key: value for key, value in asdict(self).items() if key != "notes"}
        return hashlib.sha256(json.dumps([self.kind, fields]).encode()).hexdigest()

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the numbers of shots that are asked, in rising order."""
        return sizes.shots

    @property
    def most_shots(self) -> int:
        """Return the largest number of shots that the items allow."""
        return len(self.pool)

    def shot_words(self, shots: int) -> str:
        """Return the wording of a number of shots."""
        return plural(shots, "shot")

    def draws(self, sizes: FewShotSizes) -> int:
        """Return how many times each query is asked, each time with its own set of demonstrations."""
        return 1 if self.drawn_once else sizes.draws

    @property
    def scored(self) -> tuple[str, ...]:
        """Return the metrics scored for this variant."""
        return tuple(metric for metric in self.metrics if metric in VARIED.get(self.variant, self.metrics))

    def variants(self, shots: int, sizes: FewShotSizes, seed: int) -> list[Task]:
        """Return the variants of the task that are asked at the primary number of shots, `shots`."""
        if SHUFFLED in sizes.variants and self.kind in GAINING and self.count_shown(shots) > 1:
            return [replace(self, variant=SHUFFLED)]
        return []

    def count_shown(self, shots: int) -> int:
        """Return how many demonstrations are shown for a number of shots."""
        return shots

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Choose the indices of the evaluation items used as queries."""
        order = self.generator(seed, "queries").permutation(len(self.evaluation))
        return sorted(order[: sizes.queries].tolist())

    def demonstrations(self, query: int, draw: int, shots: int, seed: int) -> list[Item]:
        """Return the demonstrations for a query, in the order shown.

        They are the first items of a new permutation of the pool for every query and draw, so resampling queries
        also resamples demonstrations. More shots extend fewer.
        """
        order = self.generator(seed, "demonstrations", query, draw).permutation(len(self.pool))
        return [self.pool[i] for i in order[:shots]]

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return the prompt, answer and candidates of one evaluation item."""
        item = self.evaluation[index]
        shown = self.demonstrations(index, draw, shots, seed)
        choices = self.candidates(index, shown, candidates, seed)
        if self.variant == SHUFFLED:
            shown = shuffled(shown, self.generator(seed, SHUFFLED, index, draw))
        prompt, shared = self.prompt(shown, item.input)
        return Query(prompt, f" {item.output}", tuple(f" {choice}" for choice in choices), shared)

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return the right answer and `count` - 1 others of the evaluation items.

        The closest in length come first, since a sum of log-probabilities favours short answers; the seed breaks ties.
        """
        return self.ranked_answers(index, [], count, seed)

    def ranked_answers(self, index: int, preferred: Sequence[str], count: int, seed: int) -> list[str]:
        """Return `count` answers: the right one, `preferred` ones in a seeded order, then others by length."""
        answer = self.evaluation[index].output
        generator = self.generator(seed, "candidates", index)
        first = [other for other in dict.fromkeys(preferred) if other != answer]
        first = [first[i] for i in generator.permutation(len(first))]
        others = sorted({item.output for item in self.evaluation} - {answer} - set(first))
        others = [others[i] for i in generator.permutation(len(others))]
        others.sort(key=lambda other: abs(len(other.encode()) - len(answer.encode())))
        return [answer, *(first + others)[: count - 1]]

    def prompt(self, shown: Sequence[Item], question: str) -> tuple[str, str]:
        """Return the prompt, and the part of it before the question."""
        ask = self.template.split(ANSWER)[0]
        shared = self.header + "".join(self.written(item) for item in shown) * (2 if self.variant == TWICE else 1)
        return shared + ask.replace(QUESTION, question), shared

    def written(self, item: Item) -> str:
        """Format one demonstration."""
        before, after = self.template.split(ANSWER)
        return f"{before.replace(QUESTION, item.input)} {item.output}{after}"

    @property
    def tuning_shots(self) -> int:
        """Return the largest number of shots in prompts for learning a soft prefix; -1 if there are no such prompts."""
        return len(self.pool) - 1

    def tuning_text(self, shots: Sequence[int], random: np.random.RandomState) -> tuple[str, str]:
        """Return a training prompt with one of these numbers of shots and its answer, using only the pool."""
        order = random.permutation(len(self.pool))
        *shown, asked = (self.pool[index] for index in order[: int(random.choice(list(shots))) + 1])
        return self.prompt(shown, asked.input)[0], f" {asked.output}"

    def free_query(self, index: int, draw: int, shots: int, seed: int) -> Query | None:
        """Return the query with content-free input, for calibrating its scores; None if the task has none."""
        return None

    def majority(self, queries: Sequence[int]) -> float | None:
        """Return the share of the most common label among the queries; None for tasks without labels."""
        return None

    def ceiling(self, queries: Sequence[int], shots: int, seed: int) -> float | None:
        """Return the accuracy of a predictor that knows the kind of rule behind the answers; None if undefined."""
        return None

    def group(self, index: int) -> str:
        """Return the paradigm of a query, or "" for none."""
        return ""

    def generator(self, seed: int, *purpose: object) -> np.random.Generator:
        """Return a random generator for one purpose, seeded by the purpose, the task's name and the seed alone."""
        return np.random.default_rng([seed, stable_number(self.name, *purpose)])


def shuffled(items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
    """Return the items with their answers randomly permuted, none staying in place."""
    order = generator.permutation(len(items))
    while len(items) > 1 and (order == np.arange(len(items))).any():
        order = generator.permutation(len(items))
    return [replace(item, output=items[other].output) for item, other in zip(items, order, strict=True)]


def check_template(template: str) -> None:
    """Raise a one-line ValueError unless the template contains `{input}` and ` {output}` once each, in that order."""
    if template.count(QUESTION) != 1 or template.count(ANSWER) != 1 or QUESTION not in template.split(ANSWER)[0]:
        raise ValueError(f"template: the template must hold {QUESTION!r} and, behind it, {ANSWER!r}, once each")

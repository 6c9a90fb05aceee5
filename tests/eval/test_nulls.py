"""What a model scores that reads no demonstrations: by hand, and models of that kind come out at nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.few_shot import score_task
from mesa_eval.measures.nulls import null, null_scores
from mesa_eval.measures.scores import ModelCard, Part, Scores
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.measures.token_count import TokenCounter
from mesa_eval.reading.encoding import Pair
from mesa_eval.reading.reader import Likelihood
from mesa_eval.tasks.classification import CONTENT_FREE, ClassTask
from mesa_eval.tasks.episodes import EpisodeTask
from mesa_eval.tasks.extractive import ChoiceTask
from mesa_eval.tasks.key_value_recall import RecallTask
from mesa_eval.tasks.task import FewShotSizes, Item, Query, Task

SIZES = FewShotSizes(
    shots=(0, 2, 8), draws=1, queries=40, candidates=5, class_shots=(0, 2, 8), episodes=40, episode_shots=(1, 2)
)
WORDS = [f"{a}{b}{c * (1 + n % 3)}" for n, a in enumerate("bdfghjpv") for b in "aeiou" for c in "klmn"]
LABELS = ("no", "perhaps", "yes")


def choices(words: Sequence[str], right: Callable[[int], int], seed: int) -> tuple[Item, ...]:
    """Make questions that list three words, of which `right` tells the place of the answer."""
    generator = np.random.default_rng(seed)
    drawn = [[words[i] for i in generator.permutation(len(words))[:3]] for _ in range(60)]
    return tuple(Item(", ".join(own), own[right(n)]) for n, own in enumerate(drawn))


def common(words: Sequence[str], seed: int) -> tuple[Item, ...]:
    """Make pairs whose first answers are far more common than the others."""
    generator = np.random.default_rng(seed)
    return tuple(Item(f"{seed} {n}", words[min(19, int(generator.exponential(4)))]) for n in range(200))


def classes(count: int, name: str) -> tuple[Item, ...]:
    return tuple(Item(f"{name} {WORDS[n]} {LABELS[n % 3]}", LABELS[min(2, n % 5)]) for n in range(count))


TASKS: list[Task] = [
    Task("own words", tuple(map(Item, WORDS[:40], WORDS[:40])), tuple(map(Item, WORDS[60:120], WORDS[60:120]))),
    Task("common answers", common(WORDS, 1), common(WORDS, 2)),
    ChoiceTask("first", choices(WORDS, lambda n: 0, 3), choices(WORDS, lambda n: 0, 4)),
    ChoiceTask("any", choices(WORDS, lambda n: n % 3, 5), choices(WORDS, lambda n: n % 3, 6)),
    ClassTask("classes", classes(60, "pool"), classes(90, "eval"), labels=LABELS),
    EpisodeTask(
        "episodes",
        tuple(Item(f"{n} {word}", word) for word in WORDS[:9] for n in range(3)),
        tuple(Item(f"{n} {word}?", word) for word in WORDS[:9] for n in range(3)),
        labels=tuple(WORDS[:9]),
    ),
    RecallTask("recall", (), tuple(map(Item, WORDS[:60], WORDS[60:120]))),
]
KNOWN = {(task.name, item.input): item.output for task in TASKS for item in task.evaluation}


class Oracle(TokenCounter):
    """Score a continuation by `rate(task, prompt, continuation, tokens)`."""

    def __init__(self, tokenizer, rate: Callable[[str, str, str, int], float]) -> None:
        super().__init__(tokenizer, "oracle", len(tokenizer), 8192, True)
        self.rate = rate

    def writes(self) -> bool:
        return False

    def likelihoods(self, pairs: Sequence[Pair], what: str = "", shared=None) -> list[Likelihood]:
        cut = [(self.tokenizer.decode(pair.tokens[1 : pair.start]), pair.tokens[pair.start :]) for pair in pairs]
        return [
            Likelihood(self.rate(what, prompt, self.tokenizer.decode(rest), len(rest)), False, tuple(rest))
            for prompt, rest in cut
        ]


def question(prompt: str) -> str:
    return prompt.rsplit(": ", 1)[-1].rsplit("\n", 1)[0]


def pairs_shown(prompt: str) -> list[tuple[str, str]]:
    blocks = [block.split("\n") for block in prompt.split("\n\n")[:-1]]
    return [(ask.split(": ", 1)[1], answer.split(": ", 1)[1]) for ask, answer in blocks]


def uniform(task: str, prompt: str, text: str, tokens: int) -> float:
    return -5.0 * tokens


def by_pool(task: str, prompt: str, text: str, tokens: int) -> float:
    pool = next(item.pool for item in TASKS if item.name == task)
    return float(sum(item.output == text.strip() for item in pool))


@cache
def candidates_asked(task: str) -> Counter[str]:
    own = next(item for item in TASKS if item.name == task)
    asked = [own.query(index, 0, 8 if own.kind == "recall" else 1, 5, seed=0) for index in own.queries(SIZES, 0)]
    return Counter(text for query in asked for text in set(query.candidates))


def by_candidates(task: str, prompt: str, text: str, tokens: int) -> float:
    return float(candidates_asked(task)[text])


def first_place(task: str, prompt: str, text: str, tokens: int) -> float:
    """Name the word that is listed first; of answers shown before, the last; of letters, the first."""
    listed = question(prompt).split(", ")
    if text.strip() in listed:
        return -float(listed.index(text.strip()))
    if task in ("recall", "own words", "common answers"):
        shown = [answer for _, answer in pairs_shown(prompt)]
        return float(max((n for n, answer in enumerate(shown, 1) if answer == text.strip()), default=0))
    return -float(ord(text.strip()[0]))


def knowing(task: str, prompt: str, text: str, tokens: int) -> float:
    """Know what each task asks for, and read in the prompt what it tells."""
    asked = question(prompt)
    if asked == CONTENT_FREE:
        return 0.0
    shown = dict(pairs_shown(prompt))
    if task == "recall":
        return float(shown.get(asked) == text.strip())
    if task == "episodes":
        table = {told.split()[-1]: letter for told, letter in shown.items()}
        return float(table[asked.split()[-1].removesuffix("?")] == text.strip())
    return float(KNOWN[task, asked] == text.strip())


def scored(tokenizer, rate) -> Scores:
    parts = []
    for task in TASKS:
        scores = score_task(Oracle(tokenizer, rate), task, SIZES, 4096, seed=0)
        parts.append(Part(f"task/{task.name}", "", task_measures(scores), task=scores.record))
    card = ModelCard(rate.__name__, rate.__name__, "M", "", 1, "f", "t", 9, 4096, 0)
    return Scores(card, {"seed": 0, "name": "made"}, "text", 1, 1, 4096, parts, {})


@pytest.mark.parametrize("rate", [uniform, by_pool, by_candidates, first_place, knowing])
@pytest.mark.parametrize("merges", ["", pytest.param("perhaps yes " * 40 + " ".join(WORDS), marks=pytest.mark.slow)])
def test_models_that_read_no_demonstrations_come_out_at_nothing(make, rate, merges: str) -> None:
    comparison = build_comparison([scored(make.tokenizer(merges_from=merges, size=330), rate)], differences=False)
    average = comparison.row("primary_average")
    assert average.label == "primary average of 6 tasks"
    assert comparison.notes[0].endswith("over 0.8: first (1.00)")  # naming the first listed word is all that it takes
    if rate is knowing:
        assert average.values[0].value > 0.99
        return
    assert average.values[0].value <= 1e-12
    for row in comparison.rows:
        if row.primary:
            assert row.values[0].value <= row.chance[0] + 1e-12


def test_recall_without_shots_lists_nothing() -> None:
    task = RecallTask("recall", (), tuple(Item(f"k{n}", f"v{n}") for n in range(50)))
    for shots in (0, 8):
        found = null_scores(task, shots, [[task.query(n, 0, shots, 5, 0)] for n in range(30)], lambda *_: 1)
        assert ("place 1" in found) == (shots > 0)
        assert null(found, [1] * 30) < 0.5


def test_nulls_by_hand() -> None:
    pool = (Item("x, y", "x"), Item("x, z", "x"))
    task = ChoiceTask("t", pool, (Item("x, yy", "yy"), Item("zz, x", "x"), Item("x, w", "x")))
    grid = [[task.query(index, 0, 0, 9, seed=0)] for index in range(3)]
    found = null_scores(task, 0, grid, lambda query, text: len(text.strip()))
    assert found == {
        "even": [0.5, 0.5, 0.5],
        "uniform": [0.0, 1.0, 0.5],
        "commonest in the pool": [0.0, 1.0, 1.0],
        "commonest candidate": [0.0, 1.0, 1.0],
        "place 1": [0.0, 0.0, 1.0],
        "place 2": [1.0, 1.0, 0.0],
    }
    assert null(found, [1, 1, 1]) == pytest.approx(2 / 3)
    assert null({"even": [0.5], "uniform": [0.9]}, [1], calibrated=True) == 0.5
    labelled = [[Query("", answer, (" no", " yes"))] for answer in (" no", " no", " no", " yes")]
    always = null_scores(TASKS[4], 2, labelled, lambda *_: 1)
    assert null(always, [1] * 4) == 0.75
    assert [name for name in always if name.startswith("always")] == ["always no", "always yes"]

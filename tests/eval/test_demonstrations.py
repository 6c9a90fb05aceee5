"""Every query has demonstrations of its own, so intervals over queries hold for new demonstrations too."""

from __future__ import annotations

import numpy as np
import pytest

from mesa_eval.tasks.classification import ClassTask
from mesa_eval.tasks.episodes import EpisodeTask
from mesa_eval.tasks.key_value_recall import RecallTask
from mesa_eval.tasks.task import FewShotSizes, Item, Task
from mesa_eval.uncertainty.bootstrap import resample

SIZES = FewShotSizes(shots=(0, 8), draws=1, queries=60, candidates=5)
LABELS = ("no", "yes")
PAIRS = Task(
    "pairs",
    tuple(Item(f"p{n}", f"{n}") for n in range(150)),
    tuple(Item(f"q{n}", f"{n}") for n in range(600)),
)
CLASSES = ClassTask(
    "classes",
    tuple(Item(f"p{n}", LABELS[n % 2]) for n in range(150)),
    tuple(Item(f"q{n}", LABELS[n % 2]) for n in range(600)),
    labels=LABELS,
)
RECALL = RecallTask("recall", (), tuple(Item(f"q{n}", f"{n}") for n in range(600)))


@pytest.mark.parametrize("task", [PAIRS, CLASSES, RECALL])
def test_every_query_has_demonstrations_of_its_own(task: Task) -> None:
    shown = {(query, draw): task.demonstrations(query, draw, 8, seed=0) for query in range(20) for draw in range(2)}
    assert len({tuple(items) for items in shown.values()}) == len(shown)
    assert shown[3, 1] == task.demonstrations(3, 1, 8, seed=0) != task.demonstrations(3, 1, 8, seed=1)
    # all of the pool is drawn from: 40 sets of at least 8 of 150 leave out few
    assert len({item.input for items in shown.values() for item in items}) > 100


@pytest.mark.parametrize("task", [PAIRS, CLASSES])
def test_more_shots_extend_fewer(task: Task) -> None:
    for shots in range(8):
        few = task.demonstrations(5, 0, shots, seed=0)
        assert task.demonstrations(5, 0, 8, seed=0)[: len(few)] == few
        assert len(few) == shots * (2 if task is CLASSES else 1)


def test_the_content_free_query_follows_its_query() -> None:
    twins = [CLASSES.free_query(index, 0, 2, seed=0) for index in range(6)]
    asked = [CLASSES.query(index, 0, 2, 9, seed=0) for index in range(6)]
    assert [twin.shared for twin in twins] == [query.shared for query in asked]
    assert len({twin.prompt for twin in twins}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("task", [PAIRS, CLASSES])
def test_intervals_cover_new_queries_and_new_demonstrations(task: Task) -> None:
    """Let a score depend on the query, on which demonstrations are shown and on the rest, in like parts.

    Every trial has a seed of its own, so other queries and other demonstrations; the mean over all of both is known.
    1,000 trials have a standard error of 0.7 points at 95 %.
    """
    generator = np.random.default_rng(0)
    help_of = {item.input: value for item, value in zip(task.pool, generator.normal(size=150), strict=True)}
    ease = generator.normal(0, 0.3, 600)
    truth = ease.mean() + np.mean(list(help_of.values()))
    trials, covered = 1000, 0
    for seed in range(trials):
        queries = task.queries(SIZES, seed)
        drawn = [
            ease[index]
            + np.mean([help_of[item.input] for item in task.demonstrations(index, 0, 8, seed)])
            + generator.normal(0, 0.3)
            for index in queries
        ]
        found = resample(np.array(drawn)[:, None], np.ones((len(drawn), 1)), draws=800, seed=seed).interval()
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / trials <= 0.97


def test_every_label_is_asked_as_often_as_can_be() -> None:
    outputs = [LABELS[n % 10 == 0] for n in range(100)] + ["maybe"] * 2
    task = ClassTask(
        "uneven",
        tuple(Item(f"p{n}", label) for n, label in enumerate((*LABELS, "maybe"))),
        tuple(Item(f"q{n}", label) for n, label in enumerate(outputs)),
        labels=(*LABELS, "maybe"),
    )
    queries = task.queries(FewShotSizes(shots=(0,), draws=1, queries=15, candidates=5), seed=0)
    asked = [task.evaluation[index].output for index in queries]
    assert sorted(asked.count(label) for label in task.labels) == [2, 6, 7]
    assert asked.count("maybe") == 2
    assert task.majority(queries) == 7 / 15
    assert len(set(queries)) == 15
    # where there are fewer than are asked for, all are asked
    assert task.queries(FewShotSizes(shots=(0,), draws=1, queries=500, candidates=5), 0) == list(range(102))


def test_no_letter_is_right_more_often_than_another() -> None:
    labels = tuple(f"class{n}" for n in range(8))
    pool = tuple(Item(f"text {label} {n}", label) for label in labels for n in range(2))
    uneven = tuple(Item(f"query {label} {n}", label) for place, label in enumerate(labels[:7]) for n in range(4**place))
    task = EpisodeTask("many", pool, uneven[:3000], labels=labels)
    asked = [task.query(index, 0, 1, 9, seed=0) for index in range(50)]
    answers = [query.answer for query in asked]
    assert [answers.count(f" {letter}") for letter in "ABCDE"] == [10] * 5
    assert len({query.prompt.rsplit("text: ")[-1].split()[1] for query in asked}) >= 5  # classes without regard to size

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from mesa_eval.measures.nulls import null_scores
from mesa_eval.measures.suites import find_suite
from mesa_eval.tasks import find_tasks
from mesa_eval.tasks.task import Task
from mesalm.data.episode_words import ATTRIBUTES, LABELS
from mesalm.data.episodes import HELD_OUT

QUICK = find_suite("quick").few_shot
SIGN = {word: sign for pair in ATTRIBUTES for word, sign in zip(pair, (-1, 1), strict=True)}


def shown_lines(prompt: str) -> list[tuple[str, str]]:
    return re.findall(r"^(.*) = (.*)$", prompt, flags=re.MULTILINE)


def test_word_labels_shows_the_word_as_often_as_there_are_shots() -> None:
    (task,) = find_tasks("word_labels", [], 0)
    assert task.shots(QUICK) == (0, 1, 2, 4, 8)
    for index in range(20):
        asked = {}
        for shots in (0, 1, 4):
            query = task.query(index, 0, shots, 5, seed=0)
            *_, word = query.prompt.removesuffix(" =").split("\n")
            found = shown_lines(query.prompt)
            assert len(found) == 24
            assert [label for item, label in found if item == word] == [query.answer.strip()] * shots
            assert query.candidates[0] == query.answer
            assert len(set(query.candidates)) == 4
            assert {item for item, _ in found} <= set(HELD_OUT.words)
            asked[shots] = (word, query.answer)
        assert len(set(asked.values())) == 1  # the same question at every number of shots
    answers = [task.query(index, 0, 0, 5, seed=0).answer for index in range(100)]
    assert len(set(answers)) == 12
    assert task.query(0, 0, 4, 5, seed=1) != task.query(0, 0, 4, 5, seed=0)


@pytest.mark.parametrize(
    ("name", "attributes", "level"),
    [
        ("attribute_rules", 6, 0.9),
        ("linear_rules", 6, 0.9),
        ("attribute_rules_of_three", 3, 0.9),
        ("linear_rules_of_three", 3, 0.8),
    ],
)
def test_rules_ask_for_a_combination_that_was_not_shown(name: str, attributes: int, level: float) -> None:
    (task,) = find_tasks(name, [], 0)
    _, least, *_, most = task.shots(QUICK)
    right = []
    for index in range(60):
        many = task.query(index, 0, most, 2, seed=0)
        few = task.query(index, 0, least, 2, seed=0)
        assert many.prompt.endswith(few.prompt)
        assert few.answer == many.answer
        assert set(many.candidates) >= {many.answer, *(f" {label}" for _, label in shown_lines(many.prompt))}
        items = [item.split()[:-1] for item, _ in shown_lines(many.prompt)]
        question = many.prompt.removesuffix(" =").rsplit("\n", 1)[1].split()[:-1]
        assert question not in items
        assert len(items) == most
        assert len(question) == attributes
        # ridge regression on the true features learns it from the examples, so that the answer can be known
        signs = np.array([[SIGN[word] for word in item] for item in [*items, question]], dtype=float)
        labels = np.array([1.0 if label == many.answer.strip() else -1.0 for _, label in shown_lines(many.prompt)])
        weights = np.linalg.solve(signs[:-1].T @ signs[:-1] + np.eye(attributes), signs[:-1].T @ labels)
        right.append(signs[-1] @ weights > 0)
    assert np.mean(right) > level


def test_the_ceiling_is_that_of_who_knows_the_kind_of_rule() -> None:
    (labels,) = find_tasks("word_labels", [], 0)
    assert [labels.ceiling(range(9), shots, 0) for shots in (1, 4)] == [1.0, 1.0]
    (one,), (linear,) = find_tasks("attribute_rules", [], 0), find_tasks("linear_rules", [], 0)
    for task in (one, linear):
        found = [task.ceiling(range(200), shots, 0) for shots in (0, 4, 8, 16, 32)]
        assert found[0] == 0.5
        assert found == sorted(found)
        assert found[4] > 0.85
    # by hand: who keeps the attributes that agree with every example is right as often, or a little oftener
    right = []
    for index in range(200):
        query = one.query(index, 0, 16, 2, seed=0)
        shown = [(item.split()[:-1], label) for item, label in shown_lines(query.prompt)]
        question = query.prompt.removesuffix(" =").rsplit("\n", 1)[1].split()[:-1]
        first = sorted({label for _, label in shown})[0]
        votes = []
        for place in range(6):
            for turn in (-1, 1):
                if all((SIGN[item[place]] == turn) == (label == first) for item, label in shown):
                    votes.append(SIGN[question[place]] == turn)
        right.append(np.mean([vote == (query.answer.strip() == first) for vote in votes]))
    assert one.ceiling(range(200), 16, 0) == pytest.approx(np.mean(right), abs=0.03)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("new_labels", set(LABELS[-4:])), ("letter_labels", set("ABCDEFGHIJKL")), ("noisy_labels", None)],
)
def test_word_labels_with_other_labels(name: str, labels: set[str] | None) -> None:
    (task,) = find_tasks(name, [], 0)
    (plain,) = find_tasks("word_labels", [], 0)
    wrong = []
    for index in range(60):
        query = task.query(index, 0, 4, 4, seed=0)
        *_, word = query.prompt.removesuffix(" =").split("\n")
        found = [label for item, label in shown_lines(query.prompt) if item == word]
        assert len(found) == 4
        assert len(set(query.candidates)) == 4
        assert {label for _, label in shown_lines(query.prompt)} <= {text.strip() for text in query.candidates}
        assert labels is None or {text.strip() for text in query.candidates} <= labels
        wrong += [label != query.answer.strip() for label in found]
    assert np.mean(wrong) == pytest.approx(0.25 if name == "noisy_labels" else 0, abs=0.06)
    ceilings = [task.ceiling(range(200), shots, 0) for shots in (0, 1, 4)]
    assert ceilings[0] == null_accuracy(task, 0, range(200))["least shown"] == pytest.approx(0.33, abs=0.07)
    if name == "noisy_labels":
        assert ceilings[1] == pytest.approx(0.75, abs=0.08)
        assert 0.85 < ceilings[2] < 0.95  # three or four right, or two against one and one
    else:
        assert ceilings[1:] == [plain.ceiling(range(200), shots, 0) for shots in (1, 4)] == [1.0, 1.0]


def null_accuracy(task: Task, shots: int, indices: Sequence[int]) -> dict[str, float]:
    """Return the accuracy of each null model of a task."""
    found = null_scores(task, shots, [[task.query(index, 0, shots, 4, seed=0)] for index in indices], lambda *_: 1)
    return {name: float(np.mean(right)) for name, right in found.items()}


def test_who_counts_labels_without_reading_words_is_a_null_model() -> None:
    (task,) = find_tasks("new_labels", [], 0)
    for shots, least in ((1, 0.25), (4, 0.4), (8, 0.8)):
        right = []
        for index in range(100):
            query = task.query(index, 0, shots, 4, seed=0)
            counts = Counter(label for _, label in shown_lines(query.prompt))
            best = [text for text in query.candidates if counts[text.strip()] == max(counts.values())]
            right.append((query.answer in best) / len(best))
        assert null_accuracy(task, shots, range(100))["most shown"] == pytest.approx(np.mean(right))
        assert np.mean(right) > least

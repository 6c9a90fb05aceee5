from __future__ import annotations

import re

import numpy as np
import pytest

from mesa_eval.protocols import find_protocol
from mesa_eval.tasks import find_tasks
from mesalm.data.episode_words import ATTRIBUTES
from mesalm.data.episodes import HELD_OUT

QUICK = find_protocol("quick").few_shot
SIGN = {word: sign for pair in ATTRIBUTES for word, sign in zip(pair, (-1, 1), strict=True)}


def shown_lines(prompt: str) -> list[tuple[str, str]]:
    return re.findall(r"^(.*) = (.*)$", prompt, flags=re.MULTILINE)


def test_word_labels_shows_the_word_as_often_as_there_are_shots() -> None:
    (task,) = find_tasks("word_labels", [], 0)
    assert task.levels(QUICK) == (0, 2, 8)
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


@pytest.mark.parametrize("name", ["attribute_rules", "linear_rules"])
def test_rules_ask_for_a_combination_that_was_not_shown(name: str) -> None:
    (task,) = find_tasks(name, [], 0)
    right = []
    for index in range(60):
        many = task.query(index, 0, 32, 2, seed=0)
        few = task.query(index, 0, 4, 2, seed=0)
        assert many.prompt.endswith(few.prompt)
        assert few.answer == many.answer
        assert set(many.candidates) == {many.answer, *(f" {label}" for _, label in shown_lines(many.prompt))}
        items = [item.split()[:-1] for item, _ in shown_lines(many.prompt)]
        question = many.prompt.removesuffix(" =").rsplit("\n", 1)[1].split()[:-1]
        assert question not in items
        assert len(items) == 32
        # ridge regression on the true features learns it from the examples, so that the answer can be known
        signs = np.array([[SIGN[word] for word in item] for item in [*items, question]], dtype=float)
        labels = np.array([1.0 if label == many.answer.strip() else -1.0 for _, label in shown_lines(many.prompt)])
        weights = np.linalg.solve(signs[:-1].T @ signs[:-1] + np.eye(6), signs[:-1].T @ labels)
        right.append(signs[-1] @ weights > 0)
    assert np.mean(right) > 0.9

"""Attribute rules: the prompt is the start of a rule episode and asks for the label of an unseen combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from mesa_eval.tasks.task import FewShotSizes, Query
from mesa_eval.tasks.word_labels import TaughtTask, random_state
from mesalm.data.episode_words import ATTRIBUTES
from mesalm.data.episodes import (
    HELD_OUT,
    EpisodeSettings,
    Example,
    Pool,
    Rule,
    draw_examples,
    draw_mapping,
)

SIGN = {word: sign for pair in ATTRIBUTES for word, sign in zip(pair, (-1, 1), strict=True)}
SHOTS = {3: (0, 2, 4, 6), 6: (0, 4, 8, 16, 32)}
"""Numbers of examples shown, by the number of attributes."""
RIDGE = 1.0


@dataclass(frozen=True)
class RuleTask(TaughtTask):
    """A rule task: predict the label of a thing whose combination of attributes the episode has not shown.

    Every query has its own episode and rule, and its things have held-out names, so recall does not help: the rule
    must be learned from the examples. The candidates are the two labels of the episode.
    """

    rule: Literal["one", "linear"] = "one"
    attributes: int = 6
    words: tuple[str, ...] = HELD_OUT.words
    labels: tuple[str, ...] = HELD_OUT.labels

    kind: ClassVar[str] = "rules"

    @property
    def most_shots(self) -> int:
        """Return how many combinations can be shown while leaving one for the question."""
        return 2**self.attributes - 1

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the numbers of examples, the same for every suite."""
        return SHOTS[self.attributes]

    def ceiling(self, queries: Sequence[int], shots: int, seed: int) -> float:
        """Return the accuracy of ridge regression from the examples' attributes to their labels, coded as -1 and 1."""
        return float(np.mean([self._ridge(index, shots, seed) for index in queries]))

    def _ridge(self, index: int, shots: int, seed: int) -> float:
        """Return 1 if the regression is right about an episode, 0 if it is wrong, and 0.5 for a tie."""
        shown, asked, mapping = self._episode(index, seed)
        seen = shown[len(shown) - shots :]
        signs = np.array([_signs(example.item) for example in seen]).reshape(shots, len(mapping.weights))
        labels = np.array([2.0 * (example.shown == mapping.labels[1]) - 1.0 for example in seen])
        weights = np.linalg.solve(signs.T @ signs + RIDGE * np.eye(len(mapping.weights)), signs.T @ labels)
        guess = float(weights @ _signs(asked.item))
        return 0.5 if abs(guess) < 1e-9 else float((guess > 0) == (asked.label == mapping.labels[1]))

    @lru_cache(maxsize=1024)  # an episode is reused at every number of shots and for the ceiling  # noqa: B019
    def _episode(self, index: int, seed: int) -> tuple[list[Example], Example, Rule]:
        settings = EpisodeSettings(task="rule", rule=self.rule, attributes=self.attributes)
        pool = Pool(self.words, self.labels)
        mapping = draw_mapping(settings, pool, random_state(seed, self.name, "mapping", index))
        assert isinstance(mapping, Rule)
        *shown, asked = draw_examples(mapping, 2**self.attributes, random_state(seed, self.name, "lines", index))
        return shown, asked, mapping

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return an episode's last `shots` examples and the question; more shots extend fewer at the front."""
        shown, asked, mapping = self._episode(index, seed)
        prompt = "".join(line.text() for line in shown[len(shown) - shots :]) + f"{asked.item} ="
        labels = (asked.label, *(other for other in mapping.labels if other != asked.label))
        return Query(prompt, f" {asked.label}", tuple(f" {choice}" for choice in labels))


def _signs(item: str) -> np.ndarray:
    """Return the signs of a thing's attributes, which are the words before its name."""
    return np.array([SIGN[word] for word in item.split()[:-1]], dtype=float)


def _rule(name: str, what: str, rule: Literal["one", "linear"], attributes: int) -> RuleTask:
    return RuleTask(name, notes=(f"{what}; no combination is shown twice",), rule=rule, attributes=attributes)


RULES = (
    _rule("attribute_rules", "one of six attributes decides", "one", 6),
    _rule("linear_rules", "the label is the sign of a random weighting of six attributes", "linear", 6),
    _rule("attribute_rules_of_three", "one of three attributes decides", "one", 3),
    _rule("linear_rules_of_three", "the label is the sign of a random weighting of three attributes", "linear", 3),
)

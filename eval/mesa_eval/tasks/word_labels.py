"""Word labels: the prompt is the beginning of a recall episode, and asks for the label of a word it has shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mesa_eval.documents import Document, stable_number
from mesa_eval.tasks.task import FewShotProtocol, Query, Task
from mesalm.data.episodes import HELD_OUT, EpisodeSettings, Example, Pool, Recall, draw_examples, draw_mapping

SHOWINGS = (0, 1, 2, 4, 8)
EPISODES = 4
"""Times the queries of other tasks that are asked, for these are short."""
LINES = 24
"""Examples before the question, whatever the number of showings, so that the place of the question tells nothing."""


@dataclass(frozen=True)
class WordLabelTask(Task):
    """Ask for the label of a held-out word that the episode has shown as often as there are shots.

    Every query has an episode of its own, of words that no training episode holds. The candidates are the labels of
    the episode; "exact" asks that the right label be the likeliest of all tokens.
    """

    words: tuple[str, ...] = HELD_OUT.words
    labels: tuple[str, ...] = HELD_OUT.labels

    kind: ClassVar[str] = "word-labels"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy", "exact")
    primary: ClassVar[str] = ""
    unit: ClassVar[str] = "episode"

    @property
    def most_shots(self) -> int:
        """Return how many of the lines may show the word in question."""
        return LINES

    def shot_words(self, shots: int) -> str:
        """Call the shots what they are here."""
        return f"{shots} showing{'s' if shots != 1 else ''}"

    def levels(self, protocol: FewShotProtocol) -> tuple[int, ...]:
        """Return the numbers of showings, the same for every suite."""
        return SHOWINGS

    def ceiling(self, queries: Sequence[int], shots: int, seed: int) -> float:
        """Return the accuracy of looking the word up, or of a guess among the labels where it was not shown."""
        return 1.0 if shots else 1 / EpisodeSettings().labels

    def draws(self, protocol: FewShotProtocol) -> int:
        """Return 1: every query has an episode of its own."""
        return 1

    def queries(self, protocol: FewShotProtocol, seed: int) -> list[int]:
        """Number the episodes."""
        return list(range(EPISODES * protocol.queries))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return an episode in which the word in question stands on `shots` of the lines, and the question."""
        mapping = draw_mapping(
            EpisodeSettings(), Pool(self.words, self.labels), random_state(seed, self.name, "mapping", index)
        )
        assert isinstance(mapping, Recall)
        random = random_state(seed, self.name, "lines", index)
        word = str(random.choice(list(mapping.label_of)))
        label = mapping.label_of[word]
        others = Recall({other: given for other, given in mapping.label_of.items() if other != word})
        lines = draw_examples(others, LINES, random)
        for place in random.permutation(LINES)[:shots]:
            lines[place] = Example(word, label, label)
        labels = (label, *(other for other in mapping.labels if other != label))
        prompt = "".join(line.text() for line in lines) + f"{word} ="
        return Query(prompt, f" {label}", tuple(f" {choice}" for choice in labels))


def random_state(seed: int, *purpose: object) -> np.random.RandomState:
    """Return the random numbers for one purpose, a function of the seed and the purpose alone."""
    return np.random.RandomState([seed, stable_number(*purpose) % 2**32])


def build(documents: Sequence[Document], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = f"a shot is one showing of the word in question among {LINES} lines; 0 showings measure the guess"
    return WordLabelTask("word_labels", (), (), notes=(note,))

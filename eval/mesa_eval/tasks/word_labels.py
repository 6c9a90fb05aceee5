"""Word labels: the prompt is the start of a recall episode and asks for the label of a word shown in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np

from mesa_eval.reading.documents import stable_number
from mesa_eval.tasks.task import FewShotSizes, Query, Task
from mesalm.data.episodes import (
    HELD_OUT,
    HELD_OUT_LABELS,
    TRAINING,
    EpisodeSettings,
    Example,
    Pool,
    Recall,
    draw_examples,
    draw_mapping,
)
from mesalm.wording import plural

SHOWINGS = (0, 1, 2, 4, 8)
EPISODES = 4
"""Factor on the number of queries of other tasks, since these prompts are short."""
LINES = 24
"""Examples before the question for any number of showings, so that the question's position reveals nothing."""


class TaughtTask(Task):
    """A task of episodes in the training format, with held-out words and labels in fields `words` and `labels`.

    A soft prefix is learned from episodes of training words and labels. Subclasses define both fields.
    """

    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy", "exact")
    primary: ClassVar[str] = ""
    unit: ClassVar[str] = "episode"
    drawn_once: ClassVar[bool] = True
    line_answers: ClassVar[bool] = True

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Return the indices of the episodes."""
        return list(range(EPISODES * sizes.queries))

    @property
    def tuning_shots(self) -> int:
        """Return the largest number of shots that an episode allows."""
        return self.most_shots

    def tuning_text(self, shots: Sequence[int], random: np.random.RandomState) -> tuple[str, str]:
        """Return the prompt and the answer of an episode with training words and labels."""
        learned: Task = replace(cast(Any, self), words=TRAINING.words, labels=TRAINING.labels)
        query = learned.query(int(random.randint(2**31)), 0, int(random.choice(list(shots))), 0, 0)
        return query.prompt, query.answer


@dataclass(frozen=True)
class WordLabelTask(TaughtTask):
    """Recall of the label of a held-out word; a shot is one example line with this word.

    Every query has its own episode, with words that occur in no training episode. The candidates are the labels of
    the episode; "exact" requires that the right label be the most likely of all tokens. A shown label is wrong with
    probability `noise`; the right one is asked for.
    """

    words: tuple[str, ...] = HELD_OUT.words
    labels: tuple[str, ...] = HELD_OUT.labels
    noise: float = 0.0

    kind: ClassVar[str] = "word-labels"

    @property
    def most_shots(self) -> int:
        """Return how many of the lines may show the queried word."""
        return LINES

    def shot_words(self, shots: int) -> str:
        """Return the wording of a number of shots: they are showings."""
        return plural(shots, "showing")

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the numbers of showings, the same for every suite."""
        return SHOWINGS

    def ceiling(self, queries: Sequence[int], shots: int, seed: int) -> float:
        """Return the accuracy of choosing the label most often shown with the word, and least with others if tied."""
        right = []
        for index in queries:
            word, label, lines, labels = self._episode(index, shots, seed)
            own, others = ([line.shown for line in lines if (line.item == word) == same] for same in (True, False))
            rank = {name: (own.count(name), -others.count(name)) for name in labels}
            best = [name for name in labels if rank[name] == max(rank.values())]
            right.append((label in best) / len(best))
        return float(np.mean(right))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return an episode with the queried word on `shots` of its lines, followed by the question."""
        word, label, lines, labels = self._episode(index, shots, seed)
        prompt = "".join(line.text() for line in lines) + f"{word} ="
        return Query(prompt, f" {label}", tuple(f" {choice}" for choice in labels))

    def _episode(self, index: int, shots: int, seed: int) -> tuple[str, str, list[Example], tuple[str, ...]]:
        """Return the queried word, its label, the lines, and the labels of the episode, the right one first."""
        mapping = draw_mapping(
            EpisodeSettings(), Pool(self.words, self.labels), random_state(seed, self.name, "mapping", index)
        )
        assert isinstance(mapping, Recall)
        random = random_state(seed, self.name, "lines", index)
        word = str(random.choice(list(mapping.label_of)))
        label = mapping.label_of[word]
        others = Recall({other: given for other, given in mapping.label_of.items() if other != word})
        lines = draw_examples(others, LINES, random, self.noise)
        wrong = [other for other in mapping.labels if other != label]
        for place in random.permutation(LINES)[:shots]:
            missed = self.noise > 0 and random.random_sample() < self.noise
            lines[place] = Example(word, label, str(random.choice(wrong)) if missed else label)
        return word, label, lines, (label, *wrong)


def random_state(seed: int, *purpose: object) -> np.random.RandomState:
    """Return a random generator for one purpose, which depends only on the seed and the purpose."""
    return np.random.RandomState([seed, stable_number(*purpose) % 2**32])


WORD_LABELS = (
    WordLabelTask(
        "word_labels",
        notes=(f"a shot is one showing of the word in question among {LINES} lines; 0 showings measure the guess",),
    ),
    WordLabelTask(
        "new_labels",
        notes=("no training episode contains these words or labels",),
        labels=HELD_OUT_LABELS.labels,
    ),
    WordLabelTask(
        "letter_labels",
        notes=("the labels are letters, which no training episode uses",),
        labels=tuple("ABCDEFGHIJKL"),
    ),
    WordLabelTask(
        "noisy_labels",
        notes=("a shown label is wrong with probability 0.25; the answer is the right one",),
        noise=0.25,
    ),
)

"""Episodes: documents that teach a mapping of their own by examples, line after line.

A *recall* episode gives its words labels at random and shows each word again and again; a *rule* episode describes
things by attributes, and a hidden rule over the attributes decides the label, so that looking up does not help. What
is learned in one episode is of no use in the next: a model that labels well after examples has learned from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from mesalm.settings import LARGEST_SEED, Settings

from .episode_words import ATTRIBUTES, LABELS, WORDS

HELD_LABELS = 4


class EpisodeSettings(Settings):
    """The settings of episodes."""

    task: Literal["recall", "rule"] = Field(
        default="recall",
        description="recall: 'word = label' lines, each word with its own label; rule: 'attributes word = label' "
        "lines, where the label follows from the attributes.",
    )
    count: int = Field(default=16_000, ge=1, description="Episodes.")
    lines: int = Field(default=36, ge=2, description="Examples per episode.")
    words: int = Field(default=10, ge=2, le=200, description="recall: different words per episode.")
    labels: int = Field(
        default=4, ge=2, le=len(LABELS) - HELD_LABELS, description="recall: different labels per episode."
    )
    label_pool: Literal["colours", "words"] = Field(
        default="colours",
        description="Where labels are drawn from: twelve colours, or all words that are not items of the episode.",
    )
    attributes: int = Field(default=6, ge=1, le=len(ATTRIBUTES), description="rule: attributes per example.")
    rule: Literal["one", "linear"] = Field(
        default="one",
        description="rule: one: a single attribute decides; linear: the sign of a random weighting of all of them.",
    )
    noise: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Probability that a shown label is replaced by another one of the episode.",
    )
    mappings: int = Field(default=0, ge=0, description="Number of different mappings; 0: each episode has its own.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Seed of the episodes.")

    def _check(self) -> None:
        if self.task == "recall" and self.labels > self.words:
            raise ValueError(
                f"labels: {self.labels} is more than the number of words, {self.words}; lower labels or raise words"
            )


@dataclass(frozen=True)
class Pool:
    """The words and labels of episodes."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


TRAINING = Pool(tuple(word for number, word in enumerate(WORDS) if number % 3), LABELS[:-HELD_LABELS])
TRAINING_WORDS = Pool(TRAINING.words, TRAINING.words)
HELD_OUT = Pool(WORDS[::3], LABELS[:-HELD_LABELS])
HELD_OUT_LABELS = Pool(WORDS[::3], LABELS[-HELD_LABELS:])


@dataclass(frozen=True)
class Example:
    """One line: what is labelled, the label that the mapping gives it, and the label that is shown."""

    item: str
    label: str
    shown: str

    def text(self) -> str:
        """Return the line as it is written."""
        return f"{self.item} = {self.shown}\n"


@dataclass(frozen=True)
class Recall:
    """The mapping of a recall episode."""

    label_of: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels in use, sorted."""
        return tuple(sorted(set(self.label_of.values())))

    def draw(self, count: int, random: np.random.RandomState) -> list[tuple[str, str]]:
        """Return `count` items with their labels; the k-th word comes with weight k^-0.7, so that words recur."""
        words = list(self.label_of)
        weights = np.arange(1, len(words) + 1) ** -0.7
        chosen = random.choice(len(words), size=count, p=weights / weights.sum())
        return [(words[number], self.label_of[words[number]]) for number in chosen]


@dataclass(frozen=True)
class Rule:
    """The mapping of a rule episode: the label is labels[1] where weights . signs > 0, else labels[0].

    `signs` are +1 or -1 for each attribute, the second or first word of its pair.
    """

    weights: tuple[float, ...]
    labels: tuple[str, str]
    words: tuple[str, ...]

    def draw(self, count: int, random: np.random.RandomState) -> list[tuple[str, str]]:
        """Return `count` items with their labels; no combination of attributes comes twice while there are others."""
        total = 2 ** len(self.weights)
        rounds = [random.permutation(total) for _ in range(-(-count // total))]
        words = random.choice(len(self.words), size=count)
        return [
            (self.describe(signs_of(int(number), len(self.weights)), self.words[word]), self.label(int(number)))
            for number, word in zip(np.concatenate(rounds)[:count], words, strict=True)
        ]

    def label(self, number: int) -> str:
        """Return the label of the things with this combination of attributes."""
        return self.labels[int(np.dot(self.weights, signs_of(number, len(self.weights))) > 0)]

    @staticmethod
    def describe(signs: Sequence[int], word: str) -> str:
        """Return a thing in words: its attributes, then its name."""
        return " ".join([*(pair[sign > 0] for pair, sign in zip(ATTRIBUTES, signs, strict=False)), word])


def signs_of(number: int, attributes: int) -> list[int]:
    """Return the signs of a combination of attributes, the bits of its number."""
    return [1 if number >> place & 1 else -1 for place in range(attributes)]


def draw_mapping(settings: EpisodeSettings, pool: Pool, random: np.random.RandomState) -> Recall | Rule:
    """Draw what an episode teaches.

    Every label of a recall episode has at least one word, and none is one of its words. A rule is drawn again until
    each label has at least three tenths of the combinations.
    """
    if settings.task == "recall":
        words = random.choice(pool.words, size=settings.words, replace=False).tolist()
        free = [label for label in pool.labels if label not in words]
        labels = random.choice(free, size=settings.labels, replace=False)
        given = np.concatenate([labels, random.choice(labels, size=settings.words - settings.labels)])
        return Recall({word: str(label) for word, label in zip(words, random.permutation(given), strict=True)})
    one, other = random.choice(pool.labels, size=2, replace=False).tolist()
    others = tuple(word for word in pool.words if word not in (one, other))
    while True:
        weights = _weights(settings, random)
        rule = Rule(weights, (one, other), others)
        first = [rule.label(number) == rule.labels[0] for number in range(2**settings.attributes)]
        if 0.3 <= np.mean(first) <= 0.7:
            return rule


def _weights(settings: EpisodeSettings, random: np.random.RandomState) -> tuple[float, ...]:
    if settings.rule == "linear":
        return tuple(float(weight) for weight in random.standard_normal(settings.attributes))
    weights = [0.0] * settings.attributes
    weights[random.randint(settings.attributes)] = float(random.choice([-1.0, 1.0]))
    return tuple(weights)


def draw_examples(
    mapping: Recall | Rule, lines: int, random: np.random.RandomState, noise: float = 0.0
) -> list[Example]:
    """Return the examples of an episode; each shown label is another of the episode's with probability `noise`."""
    examples = []
    for item, label in mapping.draw(lines, random):
        others = [other for other in mapping.labels if other != label]
        wrong = noise > 0.0 and others and random.random_sample() < noise
        examples.append(Example(item, label, str(random.choice(others)) if wrong else label))
    return examples

"""Attribute rules: the prompt is the beginning of a rule episode, and asks for the label of a thing not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from mesa_eval.documents import Document
from mesa_eval.tasks.task import FewShotProtocol, Query, Task
from mesa_eval.tasks.word_labels import random_state
from mesalm.data.episodes import HELD_OUT, EpisodeSettings, Pool, draw_examples, draw_mapping

MOST_LINES = 63


@dataclass(frozen=True)
class RuleTask(Task):
    """Ask for the label of a thing whose combination of attributes the episode has not shown.

    Every query has an episode and a rule of its own, and held-out words for its things, so recall does not help; the
    rule has to be learnt from the examples. The candidates are the two labels of the episode.
    """

    rule: Literal["one", "linear"] = "one"
    words: tuple[str, ...] = HELD_OUT.words
    labels: tuple[str, ...] = HELD_OUT.labels

    kind: ClassVar[str] = "rules"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy", "exact")
    primary: ClassVar[str] = ""
    unit: ClassVar[str] = "episode"

    @property
    def most_shots(self) -> int:
        """Return how many combinations can be shown with one left to ask."""
        return MOST_LINES

    def draws(self, protocol: FewShotProtocol) -> int:
        """Return 1: every query has an episode of its own."""
        return 1

    def queries(self, protocol: FewShotProtocol, seed: int) -> list[int]:
        """Number the episodes."""
        return list(range(protocol.queries))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return an episode's first `shots` examples and the question; fewer shots are the last of more."""
        settings = EpisodeSettings(task="rule", rule=self.rule)
        pool = Pool(self.words, self.labels)
        mapping = draw_mapping(settings, pool, random_state(seed, self.name, "mapping", index))
        *shown, asked = draw_examples(mapping, MOST_LINES + 1, random_state(seed, self.name, "lines", index))
        prompt = "".join(line.text() for line in shown[MOST_LINES - shots :]) + f"{asked.item} ="
        labels = (asked.label, *(other for other in mapping.labels if other != asked.label))
        return Query(prompt, f" {asked.label}", tuple(f" {choice}" for choice in labels))


def build(documents: Sequence[Document], seed: int) -> Task:
    """Make the task in which a single attribute decides; it needs no text."""
    return RuleTask("attribute_rules", (), (), notes=("a single attribute decides; no combination is shown twice",))

"""Extractive choice: the answer is one of the words listed in the question, and only these are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.tasks.task import Item, Task

SEPARATOR = ", "


@dataclass(frozen=True)
class ChoiceTask(Task):
    """A choice whose candidates are the words listed in the question."""

    kind: ClassVar[str] = "choice"
    listed: ClassVar[str] = "question"

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return the distinct listed words."""
        return listed_words(self.evaluation[index])


def listed_words(item: Item) -> list[str]:
    """Return the distinct words that a question lists."""
    return list(dict.fromkeys(item.input.split(SEPARATOR)))


def is_choice(items: Sequence[Item]) -> bool:
    """Return whether every question lists at least two words, one of which is the answer."""
    return all(len(listed_words(item)) > 1 and item.output in listed_words(item) for item in items)

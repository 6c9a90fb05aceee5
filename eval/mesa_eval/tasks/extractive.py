"""Extractive choice: the answer is one of the words that the question lists, and only those are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.tasks.task import Item, Task

SEPARATOR = ", "


@dataclass(frozen=True)
class ChoiceTask(Task):
    """A choice among the words listed in the question, which are the candidates."""

    kind: ClassVar[str] = "choice"
    listed: ClassVar[bool] = True

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return the listed words, each once."""
        return listed_words(self.evaluation[index])


def listed_words(item: Item) -> list[str]:
    """Return the different words that a question lists."""
    return list(dict.fromkeys(item.input.split(SEPARATOR)))


def is_choice(items: Sequence[Item]) -> bool:
    """Return whether every answer is one of at least two words that its question lists."""
    return all(len(listed_words(item)) > 1 and item.output in listed_words(item) for item in items)

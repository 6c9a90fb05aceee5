"""Phonebook: look up one of N seven-digit numbers (Jelassi et al. 2024, Repeat after me)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import FewShotSizes, Item, Query, Task
from mesa_eval.tasks.text_words import choose_words
from mesalm.wording import plural

DIGITS = 7
SOLVED = 2


@dataclass(frozen=True)
class PhonebookTask(Task):
    """A phonebook of N lines `Name Name: number`, then two example look-ups and the question for a third.

    Every query has its own book: a name is two arbitrary words of the text, a number is random. "digits" counts the
    digits that the most likely token predicts in the right place, given the right digits before it; chance is 0.1.
    """

    words: tuple[str, ...] = ()
    template: str = "{input}: {output}\n"

    kind: ClassVar[str] = "phonebook"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "digits", "exact")
    primary: ClassVar[str] = ""
    drawn_once: ClassVar[bool] = True

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the sizes of the book."""
        return sizes.entries

    @property
    def most_shots(self) -> int:
        """Return the largest number of entries with distinct names."""
        return len(self.words)

    def shot_words(self, shots: int) -> str:
        """Return the wording of a number of shots: they are entries."""
        return plural(shots, "entry")

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Return the indices of the books."""
        return list(range(sizes.queries))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return a book of `shots` entries with two example look-ups and the question."""
        generator = self.generator(seed, "book", index, shots)
        first = generator.permutation(len(self.words))[:shots]
        last = generator.permutation(len(self.words))[:shots]
        book = [
            Item(f"{self.words[a]} {self.words[b]}", "".join(map(str, generator.integers(0, 10, DIGITS))))
            for a, b in zip(first, last, strict=True)
        ]
        *solved, target = generator.choice(shots, size=SOLVED + 1, replace=False)
        listed = "".join(self.written(item) for item in book)
        prompt, _ = self.prompt([book[i] for i in solved], book[target].input)
        return Query(f"{listed}\n{prompt}", f" {book[target].output}")


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task from words of the text; ValueError if it has too few."""
    words = [word.capitalize() for word in choose_words(documents, 400, seed, "phonebook")]
    return PhonebookTask("phonebook", (), (), words=tuple(words))

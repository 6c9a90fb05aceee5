"""Phonebook: look up one of N numbers of seven digits (Jelassi et al. 2024, Repeat after me)."""

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
    """A phonebook of N lines `Name Name: number`: two are looked up, a third is asked for.

    Every query has a book of its own: names are two words of the text that need not have stood together, numbers are
    random. "digits" counts the digits that the likeliest token holds in the right place, the right digits before it
    given; chance is a tenth.
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
        """Return how many entries have names of their own."""
        return len(self.words)

    def shot_words(self, shots: int) -> str:
        """Call the shots what they are here."""
        return plural(shots, "entry")

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Number the books."""
        return list(range(sizes.queries))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return one book of `shots` entries with two look-ups and the question."""
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

"""Word scrambles: the letters of a word in another order, or with other signs between them (Brown et al. 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.tasks.task import FewShotSizes, Item, Task


@dataclass(frozen=True)
class ScrambleTask(Task):
    """Scrambled words to restore, in the form of Brown et al. (2020, appendix G).

    Exact match is what counts and its chance is 0; besides the declared numbers of shots, as many as fit are asked.
    """

    header: str = "Please unscramble the letters into a word, and write that word:\n"
    template: str = "{input} = {output}\n"

    kind: ClassVar[str] = "scramble"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "exact")
    primary: ClassVar[str] = ""
    as_many_as_fit: ClassVar[bool] = True

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the declared numbers of shots; as many as fit are added where the prompts are encoded."""
        return sizes.scramble_shots


def is_scramble(items: Sequence[Item]) -> bool:
    """Return whether every answer is a word and its question holds the word's letters, never the word itself.

    Signs that are neither letters nor digits may stand between them.
    """

    def scrambled(item: Item) -> bool:
        letters = Counter(sign for sign in item.input if sign.isalnum())
        return item.output.isalpha() and item.input != item.output and letters == Counter(item.output)

    return all(scrambled(item) for item in items)

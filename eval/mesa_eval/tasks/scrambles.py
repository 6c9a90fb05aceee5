"""Word scrambles: a word's letters in another order, or with other characters inserted (Brown et al. 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.tasks.task import FewShotSizes, Item, Task


@dataclass(frozen=True)
class ScrambleTask(Task):
    """Word unscrambling in the form of Brown et al. (2020, appendix G).

    The score is exact match, with chance 0. Besides the declared numbers of shots, the task uses as many as fit.
    """

    header: str = "Please unscramble the letters into a word, and write that word:\n"
    template: str = "{input} = {output}\n"

    kind: ClassVar[str] = "scramble"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "exact")
    primary: ClassVar[str] = ""
    as_many_as_fit: ClassVar[bool] = True

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the declared numbers of shots; encoding the prompts adds the largest number that fits."""
        return sizes.scramble_shots


def is_scramble(items: Sequence[Item]) -> bool:
    """Return whether every answer is a word and its question a different string with exactly the same letters.

    The question may also contain characters that are neither letters nor digits.
    """

    def scrambled(item: Item) -> bool:
        letters = Counter(sign for sign in item.input if sign.isalnum())
        return item.output.isalpha() and item.input != item.output and letters == Counter(item.output)

    return all(scrambled(item) for item in items)

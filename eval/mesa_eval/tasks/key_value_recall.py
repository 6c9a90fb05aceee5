"""Key-value recall: the prompt lists pairs of unrelated words and asks for the value of one key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import TWICE, FewShotSizes, Item, Task
from mesa_eval.tasks.text_words import choose_words


@dataclass(frozen=True)
class RecallTask(Task):
    """Recall of the answer of one of the demonstrations, the listed pairs; 0 shots measure guessing."""

    kind: ClassVar[str] = "recall"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy", "exact", "contains")
    listed: ClassVar[str] = "shots"

    def variants(self, shots: int, sizes: FewShotSizes, seed: int) -> list[Task]:
        """Return the task with shuffled answers, and with the pairs listed twice (Arora et al. 2024)."""
        twice = [replace(self, variant=TWICE)] if TWICE in sizes.variants and shots else []
        return [*super().variants(shots, sizes, seed), *twice]

    @property
    def most_shots(self) -> int:
        """Return the number of available pairs."""
        return len(self.evaluation)

    def demonstrations(self, query: int, draw: int, shots: int, seed: int) -> list[Item]:
        """Return the query's own item at a random position among `shots` - 1 others."""
        if not shots:
            return []
        generator = self.generator(seed, "demonstrations", draw, query)
        others = [item for number, item in enumerate(self.evaluation) if number != query]
        place = generator.random()
        shown = [others[i] for i in generator.permutation(len(others))[: shots - 1]]
        shown.insert(int(place * shots), self.evaluation[query])
        return shown

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return the right answer and distractors: values in the prompt, in their order, then others if needed."""
        listed = [item.output for item in shown]
        chosen = self.ranked_answers(index, listed, count, seed)
        return sorted(chosen, key=lambda value: listed.index(value) if value in listed else len(listed))


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task: `shots` pairs including the query's own; each word is used once, as a key or as a value.

    Raises ValueError if the text has too few words.
    """
    words = choose_words(documents, 400, seed, "key_value_recall")
    half = len(words) // 2
    items = tuple(Item(key, value) for key, value in zip(words[:half], words[half:], strict=False))
    note = "a shot is one listed pair; the distractors are other values of the prompt, as many as there are"
    return RecallTask("key_value_recall", (), items, notes=(note,))

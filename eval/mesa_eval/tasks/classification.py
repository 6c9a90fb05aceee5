"""Classification: the candidates are the labels, with equally many demonstrations of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from mesa_eval.tasks.task import FewShotSizes, Item, Query, Task

CONTENT_FREE = "N/A"
SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class LabelledTask(Task):
    """A task of texts whose answers are `labels`; shots are demonstrations per label."""

    labels: tuple[str, ...] = ()
    template: str = "text: {input}\nlabel: {output}\n\n"

    @property
    def most_shots(self) -> int:
        """Return the number of pool items of the rarest label."""
        return min(len(own) for own in self.pool_by_label.values())

    @cached_property
    def pool_by_label(self) -> dict[str, list[Item]]:
        """Return the pool items of each label."""
        return by_label(self.pool, self.labels)


@dataclass(frozen=True)
class ClassTask(LabelledTask):
    """Classification into `labels`; shots are demonstrations per label.

    Scores are plain and calibrated, that is, minus the label's score for the input "N/A" (Zhao et al. 2021,
    Calibrate before use). At the primary number of shots the task is also asked with its labels permuted, none staying
    in place, and with letters as labels; a model can solve these variants only by reading its context.
    """

    kind: ClassVar[str] = "class"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "accuracy", "calibrated", "f1", "f1-calibrated")
    primary: ClassVar[str] = "calibrated"

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the numbers of shots per label."""
        return sizes.class_shots

    def shot_words(self, shots: int) -> str:
        """Return the wording of a number of shots, which counts per label."""
        return f"{super().shot_words(shots)} a label"

    def variants(self, shots: int, sizes: FewShotSizes, seed: int) -> list[Task]:
        """Return the task with its labels permuted, with letters as labels, and with shuffled answers."""
        names = [name for name in ("permuted", "symbols") if name in sizes.variants]
        if len(self.labels) > len(SYMBOLS):
            names.remove("symbols")
        return [*(self.relabelled(name, seed) for name in names), *super().variants(shots, sizes, seed)]

    def count_shown(self, shots: int) -> int:
        """Return how many demonstrations are shown for a number of shots per label."""
        return shots * len(self.labels)

    def relabelled(self, variant: str, seed: int) -> ClassTask:
        """Return the task with other labels but the same items, demonstrations and queries."""
        if variant == "symbols":
            new: tuple[str, ...] = tuple(SYMBOLS[: len(self.labels)])
        else:
            # cycling the labels by one step in a seeded order moves every label
            order = self.generator(seed, "permuted").permutation(len(self.labels))
            following = {int(one): int(other) for one, other in zip(order, [*order[1:], order[0]], strict=True)}
            new = tuple(self.labels[following[place]] for place in range(len(self.labels)))
        table = dict(zip(self.labels, new, strict=True))

        def renamed(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(replace(item, output=table[item.output]) for item in items)

        return replace(self, variant=variant, labels=new, pool=renamed(self.pool), evaluation=renamed(self.evaluation))

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Choose items balanced over the labels, as far as each label has enough."""
        generator = self.generator(seed, "queries")
        order = generator.permutation(len(self.evaluation)).tolist()
        queues = [[i for i in order if self.evaluation[i].output == label] for label in self.labels]
        taken: list[int] = []
        for turn in range(max(map(len, queues))):
            labels = generator.permutation(len(queues))
            taken.extend(queues[label][turn] for label in labels if turn < len(queues[label]))
        return sorted(taken[: sizes.queries])

    def demonstrations(self, query: int, draw: int, shots: int, seed: int) -> list[Item]:
        """Return `shots` rounds of demonstrations, each with every label once in a new random order."""
        generator = self.generator(seed, "demonstrations", query, draw)
        own = self.pool_by_label.values()
        queues = [[items[i] for i in generator.permutation(len(items))[:shots]] for items in own]
        rounds = [generator.permutation(len(self.labels)) for _ in range(shots)]
        return [queues[label][turn] for turn, labels in enumerate(rounds) for label in labels]

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return all labels."""
        return list(self.labels)

    def free_query(self, index: int, draw: int, shots: int, seed: int) -> Query:
        """Return the prompt that asks for the label of "N/A" after the demonstrations of a query."""
        prompt, shared = self.prompt(self.demonstrations(index, draw, shots, seed), CONTENT_FREE)
        labels = tuple(f" {label}" for label in self.labels)
        return Query(prompt, labels[0], labels, shared)

    def majority(self, queries: Sequence[int]) -> float | None:
        """Return the share of the most common label among the queries."""
        outputs = [self.evaluation[index].output for index in queries]
        return max(outputs.count(label) for label in self.labels) / len(outputs)


def by_label(items: Sequence[Item], labels: Sequence[str]) -> dict[str, list[Item]]:
    """Return the items of each label."""
    return {label: [item for item in items if item.output == label] for label in labels}

"""N-way episodes: for each question a few of many classes are drawn and labelled with arbitrary letters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from mesa_eval.tasks.classification import SYMBOLS, LabelledTask, by_label
from mesa_eval.tasks.task import FewShotSizes, Item, Query


@dataclass(frozen=True)
class EpisodeTask(LabelledTask):
    """Classification of a text in episodes of `ways` classes with labels A, B, ... and `shots` demonstrations each.

    Every query is an episode with its own classes, letters and demonstrations, so that only the prompt determines
    the answer.
    """

    ways: int = 5

    kind: ClassVar[str] = "episodes"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    unit: ClassVar[str] = "episode"
    drawn_once: ClassVar[bool] = True

    @property
    def tuning_shots(self) -> int:
        """Return -1: labels change their meaning between episodes, and the queries ask for classes of the pool."""
        return -1

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return the numbers of shots per class."""
        return sizes.episode_shots

    @cached_property
    def asked_by_label(self) -> dict[str, list[Item]]:
        """Return the evaluation items of each label that has any."""
        return {label: own for label, own in by_label(self.evaluation, self.labels).items() if own}

    def shot_words(self, shots: int) -> str:
        """Return the wording of a number of shots, which counts per class."""
        return f"{super().shot_words(shots)} a class"

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Return the indices of the episodes."""
        return list(range(sizes.episodes))

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return one episode; more shots of the same episode extend fewer.

        All classes are equally likely to be asked, and each letter is right in one of every `ways` episodes.
        """
        generator = self.generator(seed, "episode", index)
        asked = list(self.asked_by_label)
        right = asked[int(generator.integers(len(asked)))]
        others = [label for label in self.labels if label != right]
        chosen = [others[i] for i in generator.permutation(len(others))[: self.ways - 1]]
        chosen.insert(index % self.ways, right)
        letters = dict(zip(chosen, SYMBOLS, strict=False))
        target = self.asked_by_label[right][int(generator.integers(len(self.asked_by_label[right])))]
        shown = []
        queues = {}
        for label in chosen:
            own = self.pool_by_label[label]
            queues[label] = [own[i] for i in generator.permutation(len(own))]
        for turn in range(shots):
            for place in self.generator(seed, "order", index, turn).permutation(self.ways):
                item = queues[chosen[place]][turn]
                shown.append(Item(item.input, letters[item.output]))
        prompt, shared = self.prompt(shown, target.input)
        choices = tuple(f" {letter}" for letter in letters.values())
        return Query(prompt, f" {letters[right]}", choices, shared)

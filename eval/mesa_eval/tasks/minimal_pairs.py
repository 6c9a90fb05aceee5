"""Minimal pairs: a grammatical sentence against a minimally different ungrammatical one, in the form of BLiMP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mesa_eval.tasks.task import FewShotSizes, Query, Task


@dataclass(frozen=True)
class MinimalPairTask(Task):
    """Minimal pairs, without demonstrations: whether P(input) > P(output); `Item.group` is the paradigm.

    A sentence's score is the sum of its tokens' log-probabilities after the start token, as in
    lm-evaluation-harness (Warstadt et al. 2020). This is a control for grammar, not in-context learning, so the
    average excludes it.
    """

    kind: ClassVar[str] = "minimal pair"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    primary: ClassVar[str] = ""
    unit: ClassVar[str] = "pair"
    drawn_once: ClassVar[bool] = True

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return (0,): nothing is shown before a sentence."""
        return (0,)

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Choose up to `group_pairs` pairs of each paradigm."""
        chosen: list[int] = []
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.evaluation):
            groups.setdefault(item.group, []).append(index)
        for group, own in groups.items():
            order = self.generator(seed, "queries", group).permutation(len(own))
            chosen.extend(own[i] for i in order[: sizes.group_pairs])
        return sorted(chosen)

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return both sentences as continuations of an empty prompt."""
        item = self.evaluation[index]
        return Query("", item.input, (item.input, item.output))

    def group(self, index: int) -> str:
        """Return the paradigm."""
        return self.evaluation[index].group

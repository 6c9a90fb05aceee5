"""Passages: an unmodified text, followed by the value that it asks for or by its own last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mesa_eval.tasks.task import TWICE, FewShotSizes, Item, Task


@dataclass(frozen=True)
class PassageTask(Task):
    """Texts, each asked once without demonstrations; texts longer than the window are skipped and counted."""

    template: str = "{input} {output}"

    primary: ClassVar[str] = ""
    leaves_out_long: ClassVar[bool] = True
    drawn_once: ClassVar[bool] = True

    def shots(self, sizes: FewShotSizes) -> tuple[int, ...]:
        """Return (0,): nothing is shown before a text."""
        return (0,)

    def shot_words(self, shots: int) -> str:
        """Return the wording used in place of a number of shots."""
        return "text as it stands"

    def queries(self, sizes: FewShotSizes, seed: int) -> list[int]:
        """Choose up to `passages` texts."""
        order = self.generator(seed, "queries").permutation(len(self.evaluation))
        return sorted(order[: sizes.passages].tolist())

    def candidates(self, index: int, shown: Sequence[Item], count: int, seed: int) -> list[str]:
        """Return only the right answer: no others are scored."""
        return [self.evaluation[index].output]


@dataclass(frozen=True)
class TextRecallTask(PassageTask):
    """Recall of a value from a text, in the form of SWDE, FDA and SQuAD in Arora et al. (2024, Based).

    The text ends just before the value. The model continues greedily to the end of the line, by at most 48 tokens, and
    is right if its continuation contains the value.
    """

    kind: ClassVar[str] = "text recall"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "contains", "exact")

    def variants(self, shots: int, sizes: FewShotSizes, seed: int) -> list[Task]:
        """Return the task with each text shown twice (Arora et al. 2024, Just read twice)."""
        return [replace(self, variant=TWICE)] if TWICE in sizes.variants else []

    def prompt(self, shown: Sequence[Item], question: str) -> tuple[str, str]:
        """Return the text up to the value, and the part of it before the question."""
        return super().prompt(shown, repeat_text(question) if self.variant == TWICE else question)


@dataclass(frozen=True)
class LastWordTask(PassageTask):
    """The last word of a text, after a space (Paperno et al. 2016, LAMBADA).

    Scores as in lm-evaluation-harness: the word's perplexity, and whether each of its tokens is the most likely one.
    """

    kind: ClassVar[str] = "last word"
    metrics: ClassVar[tuple[str, ...]] = ("answer", "perplexity", "greedy")


def repeat_text(text: str) -> str:
    """Return a text with everything before its last line, the question, repeated; a single line is repeated whole."""
    before, end, _ = text.rpartition("\n")
    return before + end + text if before.strip() else f"{text}\n{text}"


def cut_last_word(text: str, where: str) -> Item:
    """Split a text into all but its last word and that word; raise a one-line ValueError if it has only one word."""
    before, _, word = text.rstrip().rpartition(" ")
    if not before.strip():
        raise ValueError(f"{where}: the text {text[:40]!r} has no word before its last one")
    return Item(before, word)

"""Noisy labels: as `word_labels`, but one shown label in four is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import Task
from mesa_eval.tasks.word_labels import WordLabelTask

NOISE = 0.25


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = f"a shown label is wrong with probability {NOISE}; asked for is the right one"
    return WordLabelTask("noisy_labels", (), (), notes=(note,), noise=NOISE)

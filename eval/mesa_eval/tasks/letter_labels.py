"""Letter labels: as `word_labels`, with single letters for labels."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import Task
from mesa_eval.tasks.word_labels import WordLabelTask


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = "the labels are letters, of which no training episode speaks"
    return WordLabelTask("letter_labels", (), (), notes=(note,), labels=tuple("ABCDEFGHIJKL"))

"""New labels: as `word_labels`, with labels that no training episode holds either."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import Task
from mesa_eval.tasks.word_labels import WordLabelTask
from mesalm.data.episodes import HELD_OUT_LABELS


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = "neither words nor labels stood in a training episode"
    return WordLabelTask("new_labels", (), (), notes=(note,), labels=HELD_OUT_LABELS.labels)

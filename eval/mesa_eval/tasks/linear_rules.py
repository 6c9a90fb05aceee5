"""Linear rules: as `attribute_rules`, but the label is the sign of a random weighting of all attributes."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.attribute_rules import RuleTask
from mesa_eval.tasks.task import Task


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = "the label is the sign of a random weighting of six attributes; no combination is shown twice"
    return RuleTask("linear_rules", (), (), notes=(note,), rule="linear")

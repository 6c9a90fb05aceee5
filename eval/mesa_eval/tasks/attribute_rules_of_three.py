"""Attribute rules of three: as `attribute_rules`, with three attributes, so eight combinations."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.attribute_rules import RuleTask
from mesa_eval.tasks.task import Task


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task; it needs no text."""
    note = "one of three attributes decides; no combination is shown twice"
    return RuleTask("attribute_rules_of_three", (), (), notes=(note,), attributes=3)

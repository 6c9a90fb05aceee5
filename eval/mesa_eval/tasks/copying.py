"""Copying: the answer repeats the question, a word of the held-out text."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import Item, Task
from mesa_eval.tasks.text_words import choose_words


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task `Q: word\\nA: word`; ValueError if the text has too few words."""
    words = choose_words(documents, 400, seed, "copying")
    items = tuple(Item(word, word) for word in words)
    half = len(items) // 2
    return Task("copying", items[:half], items[half:])

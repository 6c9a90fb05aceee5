"""Key-value recall: the prompt lists pairs of unrelated words and asks for one of them again."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.documents import Document
from mesa_eval.task import Item, Task
from mesa_eval.tasks.text_words import choose_words


def build(documents: Sequence[Document], seed: int) -> Task:
    """Make the task: `shots` pairs, the query's own among them; no word is a key twice, or key and value.

    Raises ValueError if the text has too few words.
    """
    words = choose_words(documents, 400, seed, "key_value_recall")
    half = len(words) // 2
    items = tuple(Item(key, value) for key, value in zip(words[:half], words[half:], strict=False))
    note = "a shot is one listed pair; the distractors are the other values in the prompt as far as they go"
    return Task("key_value_recall", "recall", (), items, notes=(note,))

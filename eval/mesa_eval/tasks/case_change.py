"""Case change: snake_case identifiers to camelCase."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mesa_eval.reading.documents import HeldOutDocument, stable_number
from mesa_eval.tasks.task import Item, Task
from mesa_eval.tasks.text_words import choose_words

IDENTIFIER = re.compile(r"(?<![A-Za-z0-9_])[a-z]{2,12}(?:_[a-z]{2,12}){1,2}(?![A-Za-z0-9_(])")
WANTED = 400
LEAST = 40


def build(documents: Sequence[HeldOutDocument], seed: int) -> Task:
    """Make the task `Q: open_file\\nA: openFile` from the identifiers in the text.

    If the text has fewer than 40 of them, as prose does, each identifier is two words of the text joined by an
    underscore, and a note says so. Raises ValueError if the text has too few words for that.
    """
    found = sorted({name for document in documents for name in IDENTIFIER.findall(document.text)})
    notes: tuple[str, ...] = ()
    if len(found) < LEAST:
        words = [word.lower() for word in choose_words(documents, 2 * WANTED, seed, "case_change")]
        found = sorted({f"{a}_{b}" for a, b in zip(words[::2], words[1::2], strict=False)})
        notes = ("the text has few identifiers, so pairs of its words were joined",)
    order = np.random.default_rng([seed, stable_number("case_change")]).permutation(len(found))[:WANTED]
    items = tuple(Item(found[i], re.sub("_(.)", lambda match: match[1].upper(), found[i])) for i in order)
    half = len(items) // 2
    return Task("case_change", items[:half], items[half:], notes=notes)

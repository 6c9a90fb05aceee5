"""Words of the held-out text, used to make tasks without a task file."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mesa_eval.reading.documents import HeldOutDocument, stable_number

WORD = re.compile(r"(?<![A-Za-z0-9_'])[A-Za-z]{4,10}(?![A-Za-z0-9_'])")
LEAST = 80


def choose_words(documents: Sequence[HeldOutDocument], wanted: int, seed: int, purpose: str) -> list[str]:
    """Choose up to `wanted` distinct words of 4 to 10 letters, in a seeded order.

    Words that differ only in case count as one. Raises ValueError if the text has fewer than 80.
    """
    found: dict[str, str] = {}
    for document in documents:
        for word in WORD.findall(document.text):
            found.setdefault(word.lower(), word)
    if len(found) < LEAST:
        raise ValueError(
            f"task {purpose}: the text holds {len(found)} different words of 4 to 10 letters, at least {LEAST}"
            " are needed; give more text"
        )
    words = [found[key] for key in sorted(found)]
    order = np.random.default_rng([seed, stable_number(purpose, "words")]).permutation(len(words))
    return [words[i] for i in order[:wanted]]

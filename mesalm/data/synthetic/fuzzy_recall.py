"""Fuzzy in-context recall: keys and values of several tokens (Poli et al. 2024, MAD, arXiv 2403.17844)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import Row, Split, TokenTask, scored_labels

Motif = tuple[int, ...]


class FuzzyRecall(TokenTask):
    """Recall in context where a key or a value is a motif of one to three different tokens.

    The last token id pads rows on the left. Of the others half serve keys, half values. Keys have 1 to ``key_size``
    tokens in training and ``key_size`` in valid and test; values 1 to ``value_size``. The row ends with a pair that it
    has shown before. In training every next token is a label; in valid and test only the values of keys seen before.
    """

    name: Literal["fuzzy-recall"] = "fuzzy-recall"
    vocabulary: int = Field(default=16, ge=8, description="Token ids; the last one pads.")
    key_size: int = Field(default=3, ge=1, description="Most tokens of a key.")
    value_size: int = Field(default=3, ge=1, description="Most tokens of a value.")

    def _check(self) -> None:
        if max(self.key_size, self.value_size) > self.first_value:
            raise ValueError(
                f"key_size, value_size: must be at most {self.first_value}, the tokens there are of a kind"
            )
        if self.length < 2 * (self.key_size + self.value_size):
            raise ValueError(f"length: must hold two pairs, at least {2 * (self.key_size + self.value_size)}")

    @property
    def first_value(self) -> int:
        """Return the first token id that serves values; those below serve keys."""
        return (self.vocabulary - 1) // 2

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        value_of: dict[Motif, Motif] = {}
        shown: list[Motif] = []
        room = self.length - self.key_size - self.value_size
        while True:
            key = self._key(random, split)
            # drawn even where the key has its value already, so that a row's later draws do not hang on it
            value = self._value(random)
            value = value_of.setdefault(key, value)
            if len(key) + len(value) > room:
                break
            room -= len(key) + len(value)
            shown.append(key)
        shown.append(shown[random.randint(len(shown))])
        tokens, scored = [], []
        seen: set[Motif] = set()
        for key in shown:
            tokens += [*key, *value_of[key]]
            scored += [False] * len(key) + [key in seen] * len(value_of[key])
            seen.add(key)
        padding = self.length - len(tokens)
        row = np.array([self.vocabulary - 1] * padding + tokens)
        labelled = np.array([False] * padding + ([True] * len(tokens) if split == "train" else scored))
        return {"input_ids": row, "labels": scored_labels(row, labelled)}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all tokens that serve values."""
        return {"chance": 1 / (self.vocabulary - 1 - self.first_value)}

    def _key(self, random: np.random.RandomState, split: Split) -> Motif:
        size = 1 + random.randint(self.key_size) if split == "train" else self.key_size
        return tuple(random.permutation(self.first_value)[:size].tolist())

    def _value(self, random: np.random.RandomState) -> Motif:
        size = 1 + random.randint(self.value_size)
        drawn = random.permutation(self.vocabulary - 1 - self.first_value)[:size]
        return tuple((self.first_value + drawn).tolist())

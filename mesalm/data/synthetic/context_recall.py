"""In-context recall, plain and among noise (Poli et al. 2024, MAD, arXiv 2403.17844, section 3.1)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import Row, Split, TokenTask, scored_labels


class ContextRecall(TokenTask):
    """Keys with values that are constant in a row and drawn anew per row; asked for are those of keys seen before.

    A row is a chain of pairs of two tokens; the last pair repeats a key. In training every next token is a label; in
    valid and test only values of keys seen before. The vocabulary without noise tokens is half keys, half values.
    """

    name: Literal["context-recall"] = "context-recall"
    vocabulary: int = Field(default=16, ge=4, description="Token ids, noise tokens among them.")
    noise_tokens: int = Field(default=0, ge=0, description="Token ids that are noise.")
    noise: float = Field(default=0.0, ge=0, lt=1, description="Share of pairs that are two noise tokens instead.")

    def _check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length: must be even, for rows are pairs of tokens, not {self.length}")
        if self.noise > 0 and self.noise_tokens < 1:
            raise ValueError("noise_tokens: must be at least 1 where there is noise")
        if self.vocabulary - self.noise_tokens < 4:
            raise ValueError(f"vocabulary: must be at least 4 above noise_tokens {self.noise_tokens}")

    @property
    def first_value(self) -> int:
        """Return the first token id that is a value; keys are those below."""
        return (self.vocabulary - self.noise_tokens) // 2

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        first_value, first_noise = self.first_value, self.vocabulary - self.noise_tokens
        pairs = self.length // 2
        value_of = random.randint(first_value, first_noise, size=first_value)
        keys = random.randint(first_value, size=pairs)
        noisy = random.random_sample(pairs) < self.noise
        noisy[[random.randint(pairs - 1), -1]] = False  # something to ask for, and the question
        shown = keys[:-1][~noisy[:-1]]
        keys[-1] = shown[random.randint(len(shown))]
        tokens = np.stack([keys, value_of[keys]], axis=1)
        if self.noise_tokens:
            tokens[noisy] = random.randint(first_noise, self.vocabulary, size=(int(noisy.sum()), 2))
        if split == "train":
            return {"input_ids": tokens.ravel(), "labels": tokens.ravel().copy()}
        scored = np.zeros((pairs, 2), dtype=bool)
        seen: set[int] = set()
        for place in np.flatnonzero(~noisy):
            scored[place, 1] = int(keys[place]) in seen
            seen.add(int(keys[place]))
        return {"input_ids": tokens.ravel(), "labels": scored_labels(tokens, scored).ravel()}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all values."""
        return {"chance": 1 / (self.vocabulary - self.noise_tokens - self.first_value)}


class NoisyRecall(ContextRecall):
    """Recall in context with a share of the pairs replaced by noise tokens."""

    name: Literal["noisy-recall"] = "noisy-recall"  # type: ignore[assignment]  # the parent's name is another literal
    vocabulary: int = Field(default=32, ge=4, description="Token ids, noise tokens among them.")
    noise_tokens: int = Field(default=16, ge=0, description="Token ids that are noise.")
    noise: float = Field(default=0.2, ge=0, lt=1, description="Share of pairs that are two noise tokens instead.")

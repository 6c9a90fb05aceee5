"""Random Markov languages, one per row: next-symbol probabilities can only be estimated from the row itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import Row, Split, TokenTask, scored_labels


class Markov(TokenTask):
    """A Markov chain over symbols with its own transition matrix per row; each next symbol is to be predicted.

    The rows of the matrix are drawn from a symmetric Dirichlet distribution; with a small concentration, few symbols
    can follow each. The first symbol is uniform and not scored. From position ``switch`` on, if set, a second matrix is
    used. Ridge regression of the next symbol on the current one, both one-hot, amounts to smoothed bigram counts.
    """

    name: Literal["markov"] = "markov"
    symbols: int = Field(default=32, ge=2, description="Symbols, which are the token ids.")
    length: int = Field(default=256, ge=4, description="Tokens per row.")
    concentration: float = Field(default=0.05, gt=0, description="Dirichlet concentration per symbol.")
    switch: int = Field(default=0, ge=0, description="First position drawn from a second language; 0: one language.")
    train_rows: int = Field(default=0, ge=0, description="Rows of the training set; 0: new rows in every step.")

    def _check(self) -> None:
        if self.switch >= self.length:
            raise ValueError(f"switch: must be below the length of {self.length}, not {self.switch}")

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.symbols

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        languages = [self._language(random) for _ in range(2 if self.switch else 1)]
        tokens = np.empty(self.length, dtype=np.int64)
        tokens[0] = random.randint(self.symbols)
        for place, share in enumerate(random.random_sample(self.length - 1), start=1):
            below = languages[bool(self.switch) and place >= self.switch][tokens[place - 1]]
            tokens[place] = np.searchsorted(below, share * below[-1], side="right")
        return {"input_ids": tokens, "labels": scored_labels(tokens, np.arange(self.length) > 0)}

    def _language(self, random: np.random.RandomState) -> np.ndarray:
        """Draw a transition matrix and return the cumulative sums of its rows, float64 [symbols, symbols]."""
        matrix = random.dirichlet([self.concentration] * self.symbols, size=self.symbols)
        lost = np.flatnonzero(np.isnan(matrix).any(1))
        if len(lost):  # the row underflowed; in the limit of concentration 0, one symbol has probability 1
            matrix[lost] = np.eye(self.symbols)[random.randint(self.symbols, size=len(lost))]
        return matrix.cumsum(1)

"""Random Markov languages, one per row: what the next symbol is likely to be has to be counted in the row itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import Row, Split, TokenTask, scored_labels


class Markov(TokenTask):
    """A Markov chain over symbols, its transition matrix drawn for each row; each next symbol is to be predicted.

    Each row of the matrix is drawn from a symmetric Dirichlet distribution; a small concentration lets few symbols
    follow. The first symbol is uniform and not scored. With ``switch``, a second matrix takes over at that position.
    Ridge regression of the next symbol on the current one, both one-hot, is smoothed counting of bigrams.
    """

    name: Literal["markov"] = "markov"
    symbols: int = Field(default=32, ge=2, description="Symbols, which are the token ids.")
    length: int = Field(default=256, ge=4, description="Tokens of a row.")
    concentration: float = Field(default=0.05, gt=0, description="Of the Dirichlet distribution, per symbol.")
    switch: int = Field(default=0, ge=0, description="First position that a second language decides; 0: there is one.")
    train_rows: int = Field(default=0, ge=0, description="Rows of the training set; 0: fresh rows, none twice.")

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
        """Draw a transition matrix and return the sums along its rows, float64 [symbols, symbols]."""
        matrix = random.dirichlet([self.concentration] * self.symbols, size=self.symbols)
        lost = np.flatnonzero(np.isnan(matrix).any(1))
        if len(lost):  # all its numbers were below the least float; as the concentration goes to 0, one has all
            matrix[lost] = np.eye(self.symbols)[random.randint(self.symbols, size=len(lost))]
        return matrix.cumsum(1)

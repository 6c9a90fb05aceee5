"""Memorisation of facts in the weights (Poli et al. 2024, MAD, arXiv 2403.17844)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mesalm.settings import LARGEST_SEED

from .token_task import NOT_SCORED, Row, Split, TokenTask


class Memorisation(TokenTask):
    """Keys whose values are asked for and never shown: one map, the same in every row and split.

    A row is key, asking token, key, asking token ...; the label of an asking token's position is the key's value. The
    last token id asks; of the others half are keys, half values, each key with a value of its own.
    """

    name: Literal["memorisation"] = "memorisation"
    vocabulary: int = Field(default=256, ge=8, description="Token ids; the last one asks.")
    length: int = Field(default=32, ge=4, description="Tokens of a row.")
    map_seed: int = Field(default=12_345, ge=0, le=LARGEST_SEED, description="Seed of the map from keys to values.")
    train_rows: int = Field(default=256, ge=0, description="Rows of the training set; 0: fresh rows, none twice.")

    def _check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length: must be even, for rows are keys and asking tokens, not {self.length}")

    @property
    def values(self) -> np.ndarray:
        """Return the value of each key, int64 [keys]; keys are the ids from 0 on."""
        keys = (self.vocabulary - 1) // 2
        return keys + np.random.RandomState(self.map_seed).permutation(self.vocabulary - 1 - keys)[:keys]

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        values = self.values
        keys = random.randint(len(values), size=self.length // 2)
        tokens = np.full(self.length, self.vocabulary - 1)
        tokens[0::2] = keys
        labels = np.full(self.length, NOT_SCORED)
        labels[1::2] = values[keys]
        return {"input_ids": tokens, "labels": labels}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all values."""
        return {"chance": 1 / (self.vocabulary - 1 - (self.vocabulary - 1) // 2)}

"""Selective copying: leave the blanks out (Poli et al. 2024, MAD, arXiv 2403.17844; Gu and Dao 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import NOT_SCORED, Row, Split, TokenTask


class SelectiveCopy(TokenTask):
    """Tokens scattered among blanks, to be repeated in order.

    The last token id asks, the last but one is blank. After the asking token stand as many blanks as there are tokens
    to copy; while reading the k-th of these (the asking token is the 0-th) the model says the (k + 1)-th token.
    """

    name: Literal["selective-copy"] = "selective-copy"
    vocabulary: int = Field(default=16, ge=4, description="Token ids; the last two are blank and the asking token.")
    length: int = Field(default=256, ge=4, description="Tokens of a row.")
    copied: int = Field(default=16, ge=1, description="Tokens to copy.")

    def _check(self) -> None:
        if self.length < 2 * self.copied + 1:
            raise ValueError(f"length: must be at least {2 * self.copied + 1} for {self.copied} copied tokens")

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        asking, blank = self.vocabulary - 1, self.vocabulary - 2
        context = self.length - self.copied - 1
        tokens = np.full(self.length, blank)
        places = np.sort(random.permutation(context)[: self.copied])
        copied = random.randint(blank, size=self.copied)
        tokens[places] = copied
        tokens[context] = asking
        labels = np.full(self.length, NOT_SCORED)
        labels[context + 1 :] = copied
        return {"input_ids": tokens, "labels": labels}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all tokens that are copied."""
        return {"chance": 1 / (self.vocabulary - 2)}

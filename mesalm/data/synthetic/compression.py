"""Compression of a row into one state (Poli et al. 2024, MAD, arXiv 2403.17844)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from .token_task import NOT_SCORED, Row, Split, TokenTask


class Compression(TokenTask):
    """Random tokens, all to be decoded from the state after the last token, which is always the same.

    ``labels[t]`` is token t itself, read out by a decoder that sees that one state and t; the last position, which
    holds the closing token (the last id), is not scored.
    """

    name: Literal["compression"] = "compression"
    reads_last_state: ClassVar[bool] = True
    vocabulary: int = Field(default=16, ge=2, description="Token ids; the last one closes the row.")
    length: int = Field(default=32, ge=4, description="Tokens of a row.")

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        tokens = random.randint(self.vocabulary - 1, size=self.length)
        tokens[-1] = self.vocabulary - 1
        labels = tokens.copy()
        labels[-1] = NOT_SCORED
        return {"input_ids": tokens, "labels": labels}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all tokens but the closing one."""
        return {"chance": 1 / (self.vocabulary - 1)}

"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927, section 4 and appendix A)."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from .token_task import NOT_SCORED, Row, Split, TokenTask


class AssociativeRecall(TokenTask):
    """Show key-value pairs, then ask for the value of each key once.

    Token 0 is filler, keys are the rest of the lower half of the vocabulary, values the upper half, both drawn
    without replacement. After the pairs each key stands once more as a query at an even distance; how far is drawn
    without replacement from p(g) proportional to g^(power - 1), so most queries come early. The label of the
    position after a query is the key's value, which is not shown there. The other positions are filler, or tokens
    drawn from the whole vocabulary.
    """

    name: Literal["mqar"] = "mqar"
    vocabulary: int = Field(default=8_192, ge=8, description="Token ids; half are keys (and filler), half values.")
    length: int = Field(default=64, ge=4, description="Tokens of a row, at least 4 a pair.")
    pairs: int = Field(default=4, ge=1, description="Key-value pairs of a row, each asked for once.")
    power: float = Field(default=0.01, gt=0, description="Exponent a of the distance's p(g) ~ g^(a - 1).")
    random_filler: bool = Field(default=True, description="Whether filler is drawn from the vocabulary; else token 0.")
    train_rows: int = Field(default=100_000, ge=0, description="Rows of the training set; 0: fresh rows, none twice.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 4 * self.pairs > self.length:
            raise ValueError(f"pairs: {self.pairs} need a length of at least {4 * self.pairs}, not {self.length}")
        if self.pairs >= self.vocabulary // 2:
            raise ValueError(f"pairs: must be below half the vocabulary of {self.vocabulary}, not {self.pairs}")
        return self

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.vocabulary

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        half = self.vocabulary // 2
        keys = 1 + random.permutation(half - 1)[: self.pairs]
        values = half + random.permutation(self.vocabulary - half)[: self.pairs]
        places = (self.length - 2 * self.pairs) // 2
        chances = np.arange(1, places + 1) ** (self.power - 1.0)
        queries = 2 * self.pairs + 2 * random.choice(places, self.pairs, replace=False, p=chances / chances.sum())
        tokens = random.randint(self.vocabulary, size=self.length) if self.random_filler else np.zeros(self.length, int)
        tokens[0 : 2 * self.pairs : 2] = keys
        tokens[1 : 2 * self.pairs : 2] = values
        tokens[queries] = keys
        labels = np.full(self.length, NOT_SCORED)
        labels[queries + 1] = values
        return {"input_ids": tokens, "labels": labels}

    def guesses(self) -> dict[str, float]:
        """Return chance, one of all values, and the guess of any value that was shown."""
        return {"chance": 1 / (self.vocabulary - self.vocabulary // 2), "a value shown": 1 / self.pairs}

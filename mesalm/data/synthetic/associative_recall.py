"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927, section 4 and appendix A)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from .token_task import NOT_SCORED, Row, Split, TokenTask


class AssociativeRecall(TokenTask):
    """Key-value pairs, then each key once as a query for its value.

    Token 0 is filler. Keys are the rest of the lower half of the vocabulary, values the upper half; both are drawn
    without replacement. After the pairs, each key appears once more as a query at an even distance, drawn without
    replacement from p(g) proportional to g^(power - 1), so most queries come early. The label of the position after a
    query is the key's value, which is not shown there. The other positions hold filler, or tokens drawn from the whole
    vocabulary. ``rebound`` keys are shown again after all pairs, each with a new value. The query asks for the new
    value, so the model must overwrite the old one.
    """

    name: Literal["mqar"] = "mqar"
    vocabulary: int = Field(default=8_192, ge=8, description="Token ids; half are keys (and filler), half values.")
    length: int = Field(default=64, ge=4, description="Tokens per row, at least 4 per pair.")
    pairs: int = Field(default=4, ge=1, description="Key-value pairs per row, each queried once.")
    rebound: int = Field(
        default=0, ge=0, description="Keys shown again with a new value, which is then the correct one."
    )
    power: float = Field(default=0.01, gt=0, description="Exponent a of the distance's p(g) ~ g^(a - 1).")
    random_filler: bool = Field(default=True, description="Whether filler tokens are random; else token 0.")
    train_rows: int = Field(default=100_000, ge=0, description="Rows of the training set; 0: new rows in every step.")

    def _check(self) -> None:
        if self.rebound > self.pairs:
            raise ValueError(f"rebound: must be at most the {self.pairs} pairs, not {self.rebound}")
        least = 4 * self.pairs + 2 * self.rebound
        if least > self.length:
            raise ValueError(f"pairs: {self.pairs} need a length of at least {least}, not {self.length}")
        if self.pairs + self.rebound > self.vocabulary - self.vocabulary // 2:
            raise ValueError(
                f"rebound: pairs and rebound must be at most half the vocabulary of {self.vocabulary}, "
                f"not {self.pairs} and {self.rebound}"
            )
        if self.pairs >= self.vocabulary // 2:
            raise ValueError(f"pairs: must be below half the vocabulary of {self.vocabulary}, not {self.pairs}")

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        half, shown = self.vocabulary // 2, 2 * (self.pairs + self.rebound)
        keys = 1 + random.permutation(half - 1)[: self.pairs]
        drawn = half + random.permutation(self.vocabulary - half)[: self.pairs + self.rebound]
        places = (self.length - shown) // 2
        chances = np.arange(1, places + 1) ** (self.power - 1.0)
        queries = shown + 2 * random.choice(places, self.pairs, replace=False, p=chances / chances.sum())
        tokens = random.randint(self.vocabulary, size=self.length) if self.random_filler else np.zeros(self.length, int)
        again = random.choice(self.pairs, self.rebound, replace=False)
        tokens[0:shown:2] = np.concatenate((keys, keys[again]))
        tokens[1:shown:2] = drawn
        tokens[queries] = keys
        values = drawn[: self.pairs].copy()
        values[again] = drawn[self.pairs :]
        labels = np.full(self.length, NOT_SCORED)
        labels[queries + 1] = values
        return {"input_ids": tokens, "labels": labels}

    def guesses(self) -> dict[str, float]:
        """Return the accuracy of guessing any value (chance), the last value of a pair, or a key's first value.

        The last pair's value answers one query. No guess from the row that ignores the query is better.
        """
        found = {"chance": 1 / (self.vocabulary - self.vocabulary // 2)}
        found["a value shown"] = 1 / self.pairs
        if self.rebound:
            found["the first value"] = 1 - self.rebound / self.pairs
        return found

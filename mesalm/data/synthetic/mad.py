"""The tasks of MAD (Poli et al. 2024, arXiv 2403.17844): copying, compression, memorisation and recall."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mesalm.settings import LARGEST_SEED

from .token_task import NOT_SCORED, Row, Split, TokenTask, scored_labels


class SelectiveCopy(TokenTask):
    """Tokens scattered among blanks, to be repeated in order (also Gu and Dao 2023).

    The last token id is the query token, the second last is blank. As many blanks as there are tokens to copy follow
    the query token; at the k-th of them (the query token is the 0-th) the model predicts the (k + 1)-th token.
    """

    name: Literal["selective-copy"] = "selective-copy"
    vocabulary: int = Field(default=16, ge=4, description="Token ids; the last two are the blank and the query token.")
    length: int = Field(default=256, ge=4, description="Tokens per row.")
    copied: int = Field(default=16, ge=1, description="Tokens to copy.")

    def _check(self) -> None:
        if self.length < 2 * self.copied + 1:
            raise ValueError(f"length: must be at least {2 * self.copied + 1} for {self.copied} copied tokens")

    @property
    def answers(self) -> range:
        """Return the ids of tokens that can be copied."""
        return range(self.vocabulary - 2)

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


class Compression(TokenTask):
    """Random tokens, all to be decoded from the state after the closing token (the last id).

    ``labels[t]`` is token t itself, predicted by a decoder that sees only this state and t. The position of the closing
    token is not scored.
    """

    name: Literal["compression"] = "compression"
    reads_last_state: ClassVar[bool] = True
    vocabulary: int = Field(default=16, ge=2, description="Token ids; the last one closes the row.")
    length: int = Field(default=32, ge=4, description="Tokens per row.")

    @property
    def answers(self) -> range:
        """Return all ids except that of the closing token."""
        return range(self.vocabulary - 1)

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        tokens = random.randint(self.vocabulary - 1, size=self.length)
        tokens[-1] = self.vocabulary - 1
        labels = tokens.copy()
        labels[-1] = NOT_SCORED
        return {"input_ids": tokens, "labels": labels}


class Memorisation(TokenTask):
    """Keys whose values are never shown: one map from keys to values, the same in every row and split.

    A row is key, query token, key, query token ...; the label of a query token's position is the key's value. The query
    token is the last id; half of the others are keys, half values. No two keys share a value.
    """

    name: Literal["memorisation"] = "memorisation"
    vocabulary: int = Field(default=256, ge=8, description="Token ids; the last one is the query token.")
    length: int = Field(default=32, ge=4, description="Tokens per row.")
    map_seed: int = Field(default=12_345, ge=0, le=LARGEST_SEED, description="Seed of the map from keys to values.")
    train_rows: int = Field(default=256, ge=0, description="Rows of the training set; 0: new rows in every step.")

    def _check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length: must be even, because keys and query tokens alternate, not {self.length}")

    @property
    def values(self) -> np.ndarray:
        """Return the value of each key, int64 [keys]; the keys are the first token ids."""
        keys = (self.vocabulary - 1) // 2
        return keys + np.random.RandomState(self.map_seed).permutation(self.vocabulary - 1 - keys)[:keys]

    @property
    def answers(self) -> range:
        """Return the ids of values."""
        return range((self.vocabulary - 1) // 2, self.vocabulary - 1)

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        values = self.values
        keys = random.randint(len(values), size=self.length // 2)
        tokens = np.full(self.length, self.vocabulary - 1)
        tokens[0::2] = keys
        labels = np.full(self.length, NOT_SCORED)
        labels[1::2] = values[keys]
        return {"input_ids": tokens, "labels": labels}


class ContextRecall(TokenTask):
    """Key-value pairs whose map is drawn for each row; the values of repeated keys must be recalled.

    A row is a sequence of pairs of two tokens; the last pair repeats a key. In training, every next token is scored; in
    valid and test, only the values of repeated keys. Apart from noise tokens, half of the vocabulary are keys and half
    values, as in section 3.1.
    """

    name: Literal["context-recall"] = "context-recall"
    vocabulary: int = Field(default=16, ge=4, description="Token ids, noise tokens among them.")
    noise_tokens: int = Field(default=0, ge=0, description="Token ids that are noise.")
    noise: float = Field(default=0.0, ge=0, lt=1, description="Share of pairs that are two noise tokens instead.")

    def _check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length: must be even, because rows consist of pairs of tokens, not {self.length}")
        if self.noise > 0 and self.noise_tokens < 1:
            raise ValueError("noise_tokens: must be at least 1 if noise is above 0")
        if self.vocabulary - self.noise_tokens < 4:
            raise ValueError(f"vocabulary: must be at least 4 above noise_tokens {self.noise_tokens}")

    @property
    def first_value(self) -> int:
        """Return the first token id that is a value; lower ids are keys."""
        return (self.vocabulary - self.noise_tokens) // 2

    @property
    def answers(self) -> range:
        """Return the ids of values."""
        return range(self.first_value, self.vocabulary - self.noise_tokens)

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        first_value, first_noise = self.first_value, self.vocabulary - self.noise_tokens
        pairs = self.length // 2
        value_of = random.randint(first_value, first_noise, size=first_value)
        keys = random.randint(first_value, size=pairs)
        noisy = random.random_sample(pairs) < self.noise
        noisy[[random.randint(pairs - 1), -1]] = False  # at least one key to recall, and the query
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


class NoisyRecall(ContextRecall):
    """In-context recall where a share of the pairs is replaced by noise tokens."""

    name: Literal["noisy-recall"] = "noisy-recall"  # type: ignore[assignment]  # the parent's name is another literal
    vocabulary: int = Field(default=32, ge=4, description="Token ids, noise tokens among them.")
    noise_tokens: int = Field(default=16, ge=0, description="Token ids that are noise.")
    noise: float = Field(default=0.2, ge=0, lt=1, description="Share of pairs that are two noise tokens instead.")


Motif = tuple[int, ...]


class FuzzyRecall(TokenTask):
    """In-context recall where each key and value consists of several different tokens, by default one to three.

    The last token id pads rows on the left. Half of the others are for keys, half for values. Keys have 1 to
    ``key_size`` tokens in training and ``key_size`` in valid and test; values have 1 to ``value_size``. The last pair
    repeats an earlier one. In training every next token is scored; in valid and test, only values of repeated keys.
    """

    name: Literal["fuzzy-recall"] = "fuzzy-recall"
    vocabulary: int = Field(default=16, ge=8, description="Token ids; the last one pads.")
    key_size: int = Field(default=3, ge=1, description="Maximum number of tokens per key.")
    value_size: int = Field(default=3, ge=1, description="Maximum number of tokens per value.")

    def _check(self) -> None:
        if max(self.key_size, self.value_size) > self.first_value:
            raise ValueError(f"key_size, value_size: must be at most {self.first_value}, the number of key tokens")
        if self.length < 2 * (self.key_size + self.value_size):
            raise ValueError(f"length: must hold two pairs, at least {2 * (self.key_size + self.value_size)}")

    @property
    def first_value(self) -> int:
        """Return the first token id for values; lower ids are for keys."""
        return (self.vocabulary - 1) // 2

    @property
    def answers(self) -> range:
        """Return the ids of tokens for values."""
        return range(self.first_value, self.vocabulary - 1)

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        value_of: dict[Motif, Motif] = {}
        shown: list[Motif] = []
        room = self.length - self.key_size - self.value_size
        while True:
            key = self._key(random, split)
            # drawn even if the key already has a value, so that later draws of the row do not depend on that
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

    def _key(self, random: np.random.RandomState, split: Split) -> Motif:
        size = 1 + random.randint(self.key_size) if split == "train" else self.key_size
        return tuple(random.permutation(self.first_value)[:size].tolist())

    def _value(self, random: np.random.RandomState) -> Motif:
        size = 1 + random.randint(self.value_size)
        drawn = random.permutation(self.vocabulary - 1 - self.first_value)[:size]
        return tuple((self.first_value + drawn).tolist())

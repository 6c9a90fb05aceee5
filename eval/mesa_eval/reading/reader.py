"""The common base of `scoring.py`, which runs a model, and `token_count.py`, which counts tokens in advance.

Batches are made only here, so the tokens counted are those that a model reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mesa_eval.reading.batches import Batch, plan_batches, plan_prompts, tokens_read
from mesa_eval.reading.encoding import Pair, TextEncoder

LOGITS_PER_BATCH = 2**26  # 256 MiB of float32: a large vocabulary then gets smaller batches


class TokenScores(NamedTuple):
    """For the scored tokens of one row: log P in nats, whether the token was the likeliest, and which was."""

    nats: np.ndarray
    hits: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Likelihood:
    """log P(continuation | context) in nats, whether every token of it was the likeliest one, and the likeliest
    tokens, each given the right tokens before it."""

    nats: float
    greedy: bool
    best: tuple[int, ...] = ()


class NotFiniteError(ValueError):
    """A model gives a log-probability that is not finite; the message is one line."""


class Reader(TextEncoder, ABC):
    """A reader of rows of tokens in batches of at most `batch_tokens`; `tokens_run` counts what was read.

    name: shown in reports and errors; vocab_size: rows of the output layer; quiet: show no progress. Subclasses define
    how batches are processed.
    """

    def __init__(self, tokenizer: Any, name: str, vocab_size: int, batch_tokens: int, quiet: bool) -> None:
        super().__init__(tokenizer)
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: {batch_tokens} given; it must be at least 1")
        self.name = name
        self.vocab_size = vocab_size
        self.batch_tokens = batch_tokens
        self.quiet = quiet
        self.tokens_run = 0
        self.stage = ""  # prefix of the measure's name in progress bars, such as "3/12 "

    def token_scores(
        self,
        rows: Sequence[Sequence[int]],
        firsts: Sequence[int] | None = None,
        what: str = "",
        shared: Sequence[Hashable] | None = None,
    ) -> list[TokenScores]:
        """Score each token of each row given those before it.

        For row r and its entry f of `firsts` (1 if not given; at least 1) the result has arrays of length
        `len(r) - f`: log P(r[i] | r[:i]) in nats (float64, from a float32 log-softmax), whether r[i] was the
        likeliest token, and which was, for i = f ... len(r) - 1. The model reads `r[:-1]`. Rows are batched by
        length and padded on the right, which a causal model cannot see. Rows with the same entry of `shared` are
        continued from a cache of their common prefix, if the model has a cache; the result is
        the same up to rounding. Several processes share the batches. Raises NotFiniteError, and ValueError for a token
        that the model does not have.
        """
        self._check_tokens(rows)
        starts = [1] * len(rows) if firsts is None else list(firsts)
        if any(first < 1 for first in starts):
            raise ValueError("firsts: the first scored position must be at least 1")
        labels = shared if shared is not None and self.shares_prefixes() else None
        batches = plan_batches(rows, starts, labels, self.budget())
        found = self.score_batches(batches, rows, starts, what)
        self.tokens_run += tokens_read(batches, rows)
        nothing = TokenScores(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
        return [found.get(index, nothing) for index in range(len(rows))]

    def likelihoods(
        self, pairs: Sequence[Pair], what: str = "", shared: Sequence[Hashable] | None = None
    ) -> list[Likelihood]:
        """Return the summed log P(continuation | context) of each encoded pair; `shared` as in `token_scores`."""
        scores = self.token_scores([pair.tokens for pair in pairs], [pair.start for pair in pairs], what, shared)
        return [Likelihood(float(one.nats.sum()), bool(one.hits.all()), tuple(one.best.tolist())) for one in scores]

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int, stop: str = "\n", what: str = "", window: int | None = None
    ) -> list[str]:
        """Continue each prompt greedily, by at most `max_new_tokens` tokens, and cut before `stop`.

        Generation also ends at the end of the window. Tokens read are those of the prompt, once, and all but the last
        of the generated ones. Prompts are padded on the left, and the padding is masked. Raises ValueError for a prompt
        that fills the window, or a token that the model does not have.
        """
        rows = [self.start() + ids for ids in self.encode_all(list(prompts))]
        self._check_tokens(rows)
        most = [max_new_tokens if window is None else min(max_new_tokens, window + 1 - len(row)) for row in rows]
        if min(most, default=1) < 1:
            raise ValueError(
                f"generate: a prompt of {max(map(len, rows))} tokens leaves no room in a window of {window}"
            )
        batches = plan_prompts([len(row) for row in rows], most, self.budget())
        written = self.continue_batches(batches, rows, most, stop, what)
        self.tokens_run += sum(len(row) + len(written[place]) - 1 for place, row in enumerate(rows))
        texts = [self.tokenizer.decode(written[place], skip_special_tokens=True) for place in range(len(rows))]
        return [text.split(stop)[0] for text in texts]

    def _check_tokens(self, rows: Sequence[Sequence[int]]) -> None:
        largest = max((max(row, default=0) for row in rows), default=0)
        if largest >= self.vocab_size:
            raise ValueError(
                f"{self.name}: its tokenizer gives token {largest}, but the model has {self.vocab_size} tokens; give it"
                " its own tokenizer, or resize its embeddings"
            )

    def budget(self) -> int:
        """Return the maximum number of tokens in a batch, which is smaller for large vocabularies."""
        return min(self.batch_tokens, max(1, LOGITS_PER_BATCH // self.vocab_size))

    @abstractmethod
    def shares_prefixes(self) -> bool:
        """Return whether rows with a common prefix can be continued from one cache."""

    @abstractmethod
    def refuses(self, length: int) -> str:
        """Return why the model cannot read so many tokens at once; "" if it can, or if that is unknown."""

    @abstractmethod
    def writes(self) -> bool:
        """Return whether the model can generate."""

    @abstractmethod
    def score_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], firsts: Sequence[int], what: str
    ) -> dict[int, TokenScores]:
        """Return the scores of every row in the batches, by its index."""

    @abstractmethod
    def continue_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], most: Sequence[int], stop: str, what: str
    ) -> dict[int, list[int]]:
        """Return each row's greedy continuation of up to `most` tokens, or up to the first one that contains `stop`."""

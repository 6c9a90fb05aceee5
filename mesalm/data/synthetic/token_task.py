"""Base class of tasks on token ids: settings that draw a row from a random state, and the rows of a split.

Row ``index`` of a split depends only on (seed, split, index) and the task's settings. `TokenRows` has ``len`` and
``[]``, so `mesalm.data.stream.RowStream` can shuffle it, shard it over processes and resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args

import numpy as np
import torch
from pydantic import Field

from mesalm.settings import Settings

from .drawn_stream import Split

Row = dict[str, np.ndarray]

NOT_SCORED = -100
"""The label of a position that is not scored, as in transformers."""


class TokenTask(Settings):
    """A task whose rows are token ids; subclasses define ``name`` and `row`.

    A row holds ``input_ids`` and ``labels``, int64 [length]. ``labels[t]`` is predicted from the tokens before position
    t, since causal language models of transformers shift the labels; -100 is not scored.
    """

    reads_last_state: ClassVar[bool] = False
    """Whether all labels are decoded from the state after the last token (compression)."""

    vocabulary: int = Field(default=16, ge=2, description="Token ids.")
    length: int = Field(default=128, ge=4, description="Tokens per row.")
    train_rows: int = Field(default=12_800, ge=0, description="Rows of the training set; 0: new rows in every step.")

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.vocabulary

    @property
    def answers(self) -> range:
        """Return the ids of tokens that valid and test rows ask for; empty if no guesses among them are scored."""
        return range(0)

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row of a split."""
        raise NotImplementedError

    def guesses(self) -> dict[str, float]:
        """Return the accuracy by name of guesses that ignore the query, chance first; may be empty.

        `mesa_eval.synthetic` adds guesses from the rows, among the `answers` if there are any. The best of all is the
        null: only a higher accuracy shows that a model answers queries.
        """
        return {"chance": 1 / len(self.answers)} if self.answers else {}


class TokenRows:
    """The ``count`` rows of one split, each drawn on first access.

    With ``keep``, for a training set seen more than once, rows are cached at 8 bytes per token.
    """

    def __init__(self, task: TokenTask, split: Split, seed: int, count: int, *, keep: bool = True) -> None:
        self.task, self.split, self.seed = task, split, seed
        self._count = count
        self._kept: dict[int, Row] | None = {} if keep else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        if self._kept is None:
            return self.task.row(self.random(index), self.split)
        if index not in self._kept:
            row = self.task.row(self.random(index), self.split)
            self._kept[index] = {name: values.astype(np.int32) for name, values in row.items()}
        return self._kept[index]

    def random(self, index: int) -> np.random.RandomState:
        """Return the random state that draws row ``index``; NumPy guarantees that its stream never changes."""
        split = get_args(Split).index(self.split)
        return np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF, split, index])


def collate_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack rows into a batch of int64 [B, T] tensors."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows]).astype(np.int64)) for name in rows[0]}


def scored_labels(tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Return the tokens where ``scored`` is true and -100 elsewhere."""
    return np.where(scored, tokens, NOT_SCORED)

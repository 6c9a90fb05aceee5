"""What every task of tokens is: settings that draw a row from a random state, and the rows of a split.

Row ``index`` of a split depends on (seed, split, index) and the task's settings alone. `TokenRows` has ``len`` and
``[]``, so `mesalm.data.stream.RowStream` gives order, sharding over processes and resumption.
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
"""The label of a position that is not scored, as transformers has it."""


class TokenTask(Settings):
    """A task whose rows are token ids; subclasses give ``name`` and `row`.

    A row is ``input_ids`` and ``labels``, int64 [length]. ``labels[t]`` is to be predicted from the tokens before
    position t, which is how causal language models of transformers shift them; -100 is not scored.
    """

    reads_last_state: ClassVar[bool] = False
    """Whether the labels are to be read from the state after the last token, all at once (compression)."""

    vocabulary: int = Field(default=16, ge=2, description="Token ids.")
    length: int = Field(default=128, ge=4, description="Tokens of a row.")
    train_rows: int = Field(
        default=12_800, ge=0, description="Rows of the training set; 0: a fresh row each time, none seen twice."
    )

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.vocabulary

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row of a split."""
        raise NotImplementedError

    def guesses(self) -> dict[str, float]:
        """Return the accuracy of guesses that do not look at the query, by name, chance first; or none.

        The guesses of tasks without are made by looking at the row, in `mesa_eval.synthetic`.
        """
        return {}


class TokenRows:
    """The rows of one split, each drawn when it is first asked for.

    ``count`` rows; those of a training set that is seen more than once are kept (``keep``), 8 bytes per token.
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
        """Return the random state that draws row ``index``."""
        return row_random(self.seed, self.split, index)


def row_random(seed: int, split: Split, index: int) -> np.random.RandomState:
    """Return a generator for one row; RandomState, whose stream NumPy promises never to change."""
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, get_args(Split).index(split), index])


def collate_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack rows into a batch of int64 [B, T] tensors."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows]).astype(np.int64)) for name in rows[0]}


def scored_labels(tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Return the tokens where ``scored`` is true and -100 elsewhere."""
    return np.where(scored, tokens, NOT_SCORED)

"""Regression in context: pairs of one unknown map, one after the other, each answer asked for from those before."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field

from .vector_task import Batch, VectorTask, normal, orthogonal, uniform


class Pairs(NamedTuple):
    """The pairs of a batch: x [B, pairs, size], noisy y [B, pairs, outputs], the map of each pair's task
    [B, tasks, outputs, size], tasks in order."""

    x: torch.Tensor
    y: torch.Tensor
    maps: torch.Tensor


class ContextRegression(VectorTask):
    """Sequences x_1, y_1, x_2, y_2, ... with y_i = W x_i + noise, W of each sequence's own; asked for is y_i at x_i.

    A separator, if any, stands after each pair and is learned vector 1; ``prefix`` further learned vectors stand
    before the first pair. ``second_pairs`` pairs of a second task follow, with a map of their own. Only the positions
    of x are scored; where ``outputs`` is below ``size``, y and its targets are filled up with zeros.

    The few-shot regression of von Oswald et al. 2023 (arXiv 2309.05858), section 5, has orthogonal maps and uniform
    x; regression with Gaussian maps and inputs is that of Garg et al. 2022 (arXiv 2208.01066).
    """

    name: Literal["regression"] = "regression"
    outputs: int | None = Field(default=None, description="Entries of y; none: as many as x has.")
    pairs: int = Field(default=40, ge=1, description="Pairs of the first task.")
    second_pairs: int = Field(default=0, ge=0, description="Pairs of a second task that follows; 0: none.")
    map: Literal["gaussian", "orthogonal"] = Field(
        default="gaussian", description="How W is drawn; gaussian entries have variance 1 / size."
    )
    inputs: Literal["gaussian", "uniform"] = Field(
        default="gaussian", description="How x is drawn: N(0, 1) or [-1, 1]."
    )
    separator: bool = Field(default=False, description="Whether a learned vector stands after each pair.")
    prefix: int = Field(default=0, ge=0, description="Learned vectors before the first pair.")

    def _check(self) -> None:
        if not 1 <= self.output_size <= self.size:
            raise ValueError(f"outputs: must be from 1 to size {self.size}, not {self.outputs}")
        if self.map == "orthogonal" and self.output_size != self.size:
            raise ValueError(f"outputs: an orthogonal map has {self.size} of them, not {self.outputs}")

    @property
    def output_size(self) -> int:
        """Return the number of entries of y."""
        return self.size if self.outputs is None else self.outputs

    @property
    def pair_tokens(self) -> int:
        """Return the tokens that a pair takes, its separator counted."""
        return 3 if self.separator else 2

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens of a sequence."""
        return self.prefix + self.pair_tokens * (self.pairs + self.second_pairs)

    @property
    def learned_vectors(self) -> int:
        """Return how many learned vectors there are: the separator, then the prefix."""
        return int(self.separator) + self.prefix

    def query_positions(self) -> range:
        """Return the positions of x_1, x_2, ..., where the prediction of y is read."""
        return range(self.prefix, self.sequence_length, self.pair_tokens)

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw a batch; ``places`` is in it where there are learned vectors."""
        x, y, _ = self.sample(rows, generator)
        filled = torch.nn.functional.pad(y, (0, self.size - self.output_size))
        queries = torch.tensor(self.query_positions(), device=generator.device)
        shape = (rows, self.sequence_length, self.size)
        inputs = torch.zeros(shape, device=generator.device)
        inputs[:, queries], inputs[:, queries + 1] = x, filled
        targets = torch.zeros_like(inputs)
        targets[:, queries] = filled
        weights = torch.zeros(shape[:2], device=generator.device)
        weights[:, queries] = 1.0
        batch = {"inputs": inputs, "targets": targets, "weights": weights}
        if self.learned_vectors:
            places = torch.zeros(shape[:2], dtype=torch.int64, device=generator.device)
            if self.separator:
                places[:, queries + 2] = 1
            first = 1 + int(self.separator)
            places[:, : self.prefix] = torch.arange(first, first + self.prefix, device=generator.device)
            batch["places"] = places
        return batch

    def sample(self, rows: int, generator: torch.Generator) -> Pairs:
        """Draw pairs and maps; the same generator gives the same pairs as `draw`."""
        counts = [count for count in (self.pairs, self.second_pairs) if count]
        maps = torch.stack([self._maps(rows, generator) for _ in counts], dim=1)
        shape = (rows, sum(counts), self.size)
        x = uniform(shape, 1.0, generator) if self.inputs == "uniform" else normal(shape, 1.0, generator)
        parts = [part @ maps[:, task].mT for task, part in enumerate(x.split(counts, dim=1))]
        y = torch.cat(parts, dim=1)
        return Pairs(x, y + normal(tuple(y.shape), self.noise, generator), maps)

    def _maps(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        if self.map == "orthogonal":
            return orthogonal(rows, self.size, generator)
        return normal((rows, self.output_size, self.size), self.size**-0.5, generator)

"""In-context regression: pairs (x, y) of one unknown map; each y must be predicted from x and the previous pairs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field

from .vector_task import Batch, VectorTask, normal, orthogonal, uniform


class Pairs(NamedTuple):
    """The pairs of a batch: x [B, pairs, size], noisy y [B, pairs, outputs], and the map of each task
    [B, tasks, outputs, size] in order."""

    x: torch.Tensor
    y: torch.Tensor
    maps: torch.Tensor


class ContextRegression(VectorTask):
    """Sequences x_1, y_1, x_2, y_2, ... with y_i = W x_i + noise and one W per sequence; y_i is predicted at x_i.

    The separator after each pair, if there is one, is learned vector 1; ``prefix`` further learned vectors come before
    the first pair. ``second_pairs`` pairs of a second task with its own map follow. Only the positions of x are
    scored; if ``outputs`` is less than ``size``, y and its targets are padded with zeros.

    The few-shot regression of von Oswald et al. 2023 (arXiv 2309.05858), section 5, uses orthogonal maps and uniform
    x; Garg et al. 2022 (arXiv 2208.01066) use Gaussian maps and inputs.
    """

    name: Literal["regression"] = "regression"
    outputs: int | None = Field(default=None, description="Size of y; none: that of x.")
    pairs: int = Field(default=40, ge=1, description="Pairs of the first task.")
    second_pairs: int = Field(default=0, ge=0, description="Pairs of a second task that follows; 0: none.")
    map: Literal["gaussian", "orthogonal"] = Field(
        default="gaussian", description="How W is drawn; gaussian entries have variance 1 / size."
    )
    inputs: Literal["gaussian", "uniform"] = Field(
        default="gaussian", description="How x is drawn: N(0, 1) or [-1, 1]."
    )
    separator: bool = Field(default=False, description="Whether a learned vector follows each pair.")
    prefix: int = Field(default=0, ge=0, description="Learned vectors before the first pair.")

    def _check(self) -> None:
        if not 1 <= self.output_size <= self.size:
            raise ValueError(f"outputs: must be from 1 to size {self.size}, not {self.outputs}")
        if self.map == "orthogonal" and self.output_size != self.size:
            raise ValueError(f"outputs: must be {self.size} for an orthogonal map, not {self.outputs}")

    @property
    def output_size(self) -> int:
        """Return the number of entries of y."""
        return self.size if self.outputs is None else self.outputs

    @property
    def pair_tokens(self) -> int:
        """Return the number of tokens per pair, including the separator."""
        return 3 if self.separator else 2

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens of a sequence."""
        return self.prefix + self.pair_tokens * (self.pairs + self.second_pairs)

    @property
    def learned_vectors(self) -> int:
        """Return the number of learned vectors: the separator and the prefix."""
        return int(self.separator) + self.prefix

    def query_positions(self) -> range:
        """Return the positions of x_1, x_2, ..., where the prediction of y is read."""
        return range(self.prefix, self.sequence_length, self.pair_tokens)

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw a batch; it contains ``places`` if the task has learned vectors."""
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

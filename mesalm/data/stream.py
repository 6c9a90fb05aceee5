"""Batches of rows in an order that depends only on (seed, epoch, row), not on the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from mesalm.wording import plural

from .packing import segment_positions


def epoch_order(seed: int, epoch: int, total: int, part: int = 0) -> np.ndarray:
    """Return the order of the ``total`` rows of a part in one epoch, int64 [total], from seed, epoch and part only."""
    # RandomState, not Generator: NumPy promises never to change its stream, so old runs can be resumed.
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch] + [part] * (part > 0)
    return np.random.RandomState(words).permutation(total)


def picks(weights: Sequence[float], begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for the draws ``begin`` to ``begin + count``, the part of each and its number within the part, int64.

    Draw n goes to the part with the largest w_i / (2 c_i + 1), for weight w_i and c_i draws so far: the divisor method
    of Webster and Sainte-Lague, whose shares are closest to the weights after every draw. Equivalently, draw k of
    part i happens at time (k + 1/2) / w_i, so draws before ``begin`` need not be computed.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    # At time t part i has had about t w_i draws, at most half a draw more or less.
    slack = len(shares)
    first = np.maximum(np.floor((begin - slack) * shares - 0.5), 0).astype(np.int64)
    last = np.ceil((begin + count + slack) * shares + 0.5).astype(np.int64)
    parts = np.repeat(np.arange(len(shares)), last - first)
    numbers = np.concatenate([np.arange(low, high) for low, high in zip(first, last, strict=True)])
    times = (numbers + 0.5) / shares[parts]
    chosen = np.lexsort((parts, times))[begin - int(first.sum()) :][:count]
    return parts[chosen], numbers[chosen]


class Mixture:
    """Endless draws, by ``weights``, from several consecutive parts of ``sizes`` rows.

    Each part has its own order of rows, which changes with each of its epochs.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self.sizes = list(sizes)
        self.weights = list(weights)
        self._begins = np.cumsum(self.sizes) - self.sizes
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def rows(self, seed: int, begin: int, count: int) -> np.ndarray:
        """Return the row indices of draws ``begin`` to ``begin + count``, int64 [count]."""
        parts, numbers = picks(self.weights, begin, count)
        places = np.empty(count, dtype=np.int64)
        for part in np.unique(parts):
            mine = parts == part
            epochs, within = np.divmod(numbers[mine], self.sizes[part])
            orders = {epoch: self._order(seed, int(epoch), int(part)) for epoch in np.unique(epochs)}
            drawn = [orders[epoch][row] for epoch, row in zip(epochs, within, strict=True)]
            places[mine] = self._begins[part] + np.array(drawn, dtype=np.int64)
        return places

    def _order(self, seed: int, epoch: int, part: int) -> np.ndarray:
        if (part, epoch) not in self._orders:
            # Two orders per part are enough: draws move from one epoch to the next and never return.
            for old in sorted(key for key in self._orders if key[0] == part)[:-1]:
                del self._orders[old]
            self._orders[part, epoch] = epoch_order(seed, epoch, self.sizes[part], part)
        return self._orders[part, epoch]


@dataclass(frozen=True)
class RowRamp:
    """Steps of ``full`` rows; over a third each of the first ``over`` rows, of a quarter, a half and three quarters."""

    full: int
    over: int = 0

    def rows(self, done: int) -> int:
        """Return the rows of the step that begins after ``done`` rows."""
        return self.full if done >= self.over else self.full * (1 + 3 * done // self.over) // 4

    def total(self, steps: int) -> int:
        """Return the rows of the first ``steps`` steps together."""
        done, left = 0, steps
        while left and done < self.over:
            done, left = done + self.rows(done), left - 1
        return done + left * self.full

    def steps(self, rows: int) -> int:
        """Return how many steps take at least ``rows`` rows."""
        done = count = 0
        while done < min(rows, self.over):
            done, count = done + self.rows(done), count + 1
        return count + math.ceil(max(rows - done, 0) / self.full)


Batch = dict[str, torch.Tensor]
Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class DataPosition:
    """A position in the data, saved in checkpoints as plain data."""

    def to_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a position from a `to_dict` result. Raises ValueError for other keys or values of the wrong type."""
        kinds = {field.name: field.type for field in fields(cls)}
        if set(data) != set(kinds) or any(type(data[name]) is not int for name in kinds if kinds[name] == "int"):
            raise ValueError(f"a data position must hold {' and '.join(kinds)}, not {dict(data)!r}")
        return cls(**data)


@dataclass(frozen=True)
class Position(DataPosition):
    """The place of a run in rows on disk: the next row is number ``row`` of the ``epoch``'s order."""

    seed: int
    epoch: int = 0
    row: int = 0

    def advance(self, rows: int, total: int) -> Position:
        """Return the position ``rows`` rows later in data of ``total`` rows per epoch."""
        epochs, row = divmod(self.row + rows, total)
        return Position(self.seed, self.epoch + epochs, row)


def collate_tokens(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Make a batch of packed rows: input_ids, position_ids and labels, int64 [B, T].

    Labels equal input_ids: the model shifts them. Positions restart at 0 where a document begins.
    """
    input_ids = torch.from_numpy(np.stack([np.asarray(item["input_ids"]) for item in items]).astype(np.int64))
    segments = np.concatenate([np.asarray(item["segments"]) for item in items])
    positions = torch.from_numpy(segment_positions(segments)).view_as(input_ids)
    return {"input_ids": input_ids, "position_ids": positions, "labels": input_ids.clone()}


class SharedSteps:
    """Steps of which process ``rank`` of ``world`` takes a contiguous slice, in micro-batches of ``micro_rows`` rows.

    Raises ValueError unless the ``global_rows`` rows of a step divide evenly.
    """

    def __init__(self, global_rows: int, rank: int, world: int, micro_rows: int) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1 = {world - 1}, not {rank}")
        if micro_rows < 1 or global_rows < 1 or global_rows % (world * micro_rows):
            raise ValueError(
                f"the {plural(global_rows, 'row')} of a step must be a multiple of {plural(world, 'process')} times "
                f"{plural(micro_rows, 'row')} of a micro-batch; change one of the two"
            )
        self.global_rows, self.rank, self.world, self.micro_rows = global_rows, rank, world, micro_rows

    @property
    def micro_batches(self) -> int:
        """Return how many micro-batches the next step has."""
        return self.global_rows // (self.world * self.micro_rows)


class RowStream(SharedSteps):
    """An endless stream of one process's micro-batches.

    Each optimiser step takes ``global_rows`` rows from ``position`` on, across the end of an epoch into the next, or of
    the parts of a ``mixture`` by their weights; process ``rank`` of ``world`` takes the rank-th contiguous slice of
    them, cut into ``micro_batches`` micro-batches of ``micro_rows`` rows. Steps of the first ``ramp`` rows are smaller,
    as `RowRamp` says. ``rows`` is any dataset with ``len`` and ``[]``; ``collate`` turns a list of its items into a
    batch. ``workers`` processes read ahead (0: none).
    ``position`` is that of the first step not yet handed out whole; a new ``iter`` begins there.

    Raises ValueError when the rows of a step do not divide evenly or the position lies outside the data.
    """

    def __init__(
        self,
        rows: Any,
        position: Position,
        global_rows: int,
        *,
        rank: int = 0,
        world: int = 1,
        micro_rows: int,
        workers: int = 0,
        collate: Collate = collate_tokens,
        ramp: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        self.total = len(rows)
        if self.total == 0:
            raise ValueError("the data have no rows; give more text or a shorter sequence_length")
        self.ramp = RowRamp(global_rows, ramp)
        super().__init__(self.ramp.rows(0), rank, world, micro_rows)
        if position.seed < 0 or position.epoch < 0 or not 0 <= position.row < self.total:
            raise ValueError(f"{position} is outside the data of {self.total} rows; restore the data it was saved with")
        self.rows = rows
        self.position = position
        self.workers = workers
        self.collate = collate
        self._mixture = mixture or Mixture([self.total], [1.0])

    def __iter__(self) -> Generator[Batch]:
        handed = 0
        for batch in _fetched(self.rows, self._indices(self.position), self.collate, self.workers):
            handed += 1
            if handed == self.micro_batches:
                handed = 0
                self.position = self.position.advance(self._step_rows(self.position), self.total)
            yield batch

    @property
    def micro_batches(self) -> int:
        """Return how many micro-batches the next step has."""
        return self._step_rows(self.position) // (self.world * self.micro_rows)

    @property
    def epochs(self) -> float:
        """Return the number of passes through the data so far, such as 2.5."""
        return self.position.epoch + self.position.row / self.total

    def _indices(self, position: Position) -> Iterator[list[int]]:
        while True:
            rows = self._step_rows(position)
            share = rows // self.world
            mine = position.advance(self.rank * share, self.total)
            chosen = self._mixture.rows(mine.seed, mine.epoch * self.total + mine.row, share)
            for begin in range(0, share, self.micro_rows):
                yield chosen[begin : begin + self.micro_rows].tolist()
            position = position.advance(rows, self.total)

    def _step_rows(self, position: Position) -> int:
        return self.ramp.rows(position.epoch * self.total + position.row)


def epoch_batches(
    rows: Any, micro_rows: int, rank: int = 0, world: int = 1, *, collate: Collate = collate_tokens
) -> Iterator[Batch]:
    """Yield each row once, in order, as batches of up to ``micro_rows`` rows.

    Process ``rank`` of ``world`` takes the rank-th contiguous part; parts differ by at most one row, so
    the number of batches may differ by one between processes. The last batch may be short.
    """
    total = len(rows)
    begin, end = total * rank // world, total * (rank + 1) // world
    batches = (list(range(at, min(at + micro_rows, end))) for at in range(begin, end, micro_rows))
    yield from _fetched(rows, batches, collate, workers=0)


def _fetched(rows: Any, indices: Iterator[list[int]], collate: Collate, workers: int) -> Iterator[Batch]:
    # A separate generator: otherwise creating an iterator would draw from the global random state.
    yield from torch.utils.data.DataLoader(
        rows, batch_sampler=indices, collate_fn=collate, num_workers=workers, generator=torch.Generator()
    )

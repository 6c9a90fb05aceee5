"""Batches drawn on the fly, determined by (seed, step) and not by the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from mesalm.data.stream import Batch, DataPosition, SharedSteps

Split = Literal["train", "valid", "test"]
ODD = 0x9E3779B1
"""An odd factor: its multiples by the step are distinct modulo 2^32, so no two steps of a run share a seed."""


class Drawn(Protocol):
    """A source of batches of ``rows`` sequences on the generator's device; see `vector_task.VectorTask`."""

    def draw(self, rows: int, generator: torch.Generator) -> Batch: ...


@dataclass(frozen=True)
class StepPosition(DataPosition):
    """The data position of a run: the next batch is that of optimiser step ``step``."""

    seed: int
    step: int = 0


def step_generator(seed: int, step: int, split: Split = "train", device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one step's batch.

    The numbers depend on (seed, split, step) and on the device type: torch's generators differ between CPU and GPU.
    torch's CPU generator uses only 32 bits of a seed, so runs with different seeds may share a batch in some steps.
    """
    digest = hashlib.blake2b(f"{seed} {split}".encode(), digest_size=4).digest()
    mixed = (int.from_bytes(digest, "little") + step * ODD) % 2**32
    return torch.Generator(device=device).manual_seed(mixed)


def drawn_batch(
    task: Drawn, rows: int, seed: int, *, step: int = 0, split: Split = "test", device: torch.device | str = "cpu"
) -> Batch:
    """Draw one batch outside training; any ``split`` but train differs from the training data of the same seed."""
    return task.draw(rows, step_generator(seed, step, split, device))


class DrawnStream(SharedSteps):
    """The endless stream of micro-batches of a training in one process, without repetition.

    Each optimiser step uses a batch of ``global_rows`` sequences, cut into micro-batches of ``micro_rows`` (None: the
    whole batch).
    ``position`` is the first step that has not been yielded completely; a new ``iter`` starts there.

    Raises ValueError if the rows of a step do not divide evenly.
    """

    def __init__(
        self,
        task: Drawn,
        position: StepPosition,
        global_rows: int,
        *,
        micro_rows: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(global_rows, 0, 1, micro_rows or global_rows)
        self.task = task
        self.position = position
        self.device = device

    def __iter__(self) -> Generator[Batch]:
        while True:
            seed, step = self.position.seed, self.position.step
            batch = self.task.draw(self.global_rows, step_generator(seed, step, device=self.device))
            for at in range(0, self.global_rows, self.micro_rows):
                if at + self.micro_rows == self.global_rows:
                    self.position = StepPosition(seed, step + 1)
                yield {name: tensor[at : at + self.micro_rows] for name, tensor in batch.items()}

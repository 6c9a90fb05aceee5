"""Sharing the batches of one model among the processes of `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process among all; one process alone needs no accelerate."""

    index: int = 0
    count: int = 1
    device: str = ""

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.index == 0

    def gather(self, own: dict[int, Any], error: ValueError | None = None) -> dict[int, Any]:
        """Return the entries of all processes together, in each of them.

        Raises the error that one of them passes in every process, so that none waits for another, and ValueError if
        one has ended.
        """
        parts = [(own, error)]
        if self.count > 1:
            from accelerate.utils import gather_object
            from torch.distributed import DistError

            try:
                parts = gather_object(parts)
            except RuntimeError as lost:
                if not isinstance(lost, DistError) and "gloo" not in str(lost):
                    raise
                raise ValueError(
                    "another process has ended or does not answer; fix that process, then run the same command to "
                    "continue"
                ) from lost
        for _, given in parts:
            if given is not None:
                raise given
        return {key: value for entries, _ in parts for key, value in entries.items()}


def join_processes(device: str = "auto", environment: Mapping[str, str] = os.environ) -> Processes:
    """Return this process's index among those of a launcher (per WORLD_SIZE), or a single process without one.

    Raises ValueError with one line if accelerate sees fewer processes than were launched: each would measure
    everything by itself.
    """
    asked = environment.get("WORLD_SIZE", "1")
    if not asked.isdecimal() or int(asked) <= 1:
        return Processes()
    import torch
    from accelerate.state import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if state.num_processes != int(asked):
        raise ValueError(
            f"{asked} processes were launched but accelerate sees {state.num_processes}; launch with --multi_gpu, or"
            " with --cpu for CPU processes"
        )
    return Processes(state.process_index, state.num_processes, str(state.device))

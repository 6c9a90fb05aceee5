"""Support for models sharded over processes, whose forward passes need all processes to take part."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import ProcessGroup, group
from torch.distributed.algorithms import Join, Joinable, JoinHook
from torch.distributed.fsdp import FSDPModule


def is_sharded(model: Any) -> bool:
    """Return whether FSDP2 shards a model."""
    return isinstance(model, FSDPModule)


@contextmanager
def in_step(model: Any) -> Iterator[None]:
    """Allow each process to run a sharded model a different number of times; all must enter this context.

    It uses torch's Join. Before each forward pass the processes count those that still have passes to make. A process
    that has finished makes dummy passes over one token until all have finished, so that no pass waits forever. For a
    model that is not sharded nothing is done.
    """
    if not is_sharded(model):
        yield
        return
    passes = _Passes(model)
    with warnings.catch_warnings(), Join([passes]):  # Join sets a filter for warnings of its own
        # ahead of FSDP's own hook, so that the count comes before the weights of the pass
        counted = model.register_forward_pre_hook(passes.count, prepend=True)
        try:
            yield
        finally:
            counted.remove()


class _Passes(Joinable):
    """The forward passes of one process, counted before each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def count(self, *_: Any) -> None:
        """Tell the other processes of a pass that is about to begin."""
        work = Join.notify_join_context(self)
        if work is not None:
            work.wait()

    def join_hook(self, **_: Any) -> JoinHook:
        return _Company(self._model, self.join_device)

    @property
    def join_device(self) -> torch.device:
        return next(self._model.parameters()).device

    @property
    def join_process_group(self) -> ProcessGroup | None:
        return group.WORLD


class _Company(JoinHook):
    """The passes of a process that has nothing left to read."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._ids = torch.zeros((1, 1), dtype=torch.long, device=device)

    def main_hook(self) -> None:
        with torch.no_grad():
            self._model(input_ids=self._ids)

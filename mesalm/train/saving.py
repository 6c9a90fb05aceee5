"""Checkpoints on the way: gathered from all processes, written at once or beside it, and noted in the journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mesalm.journal import Journal
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.launch import broadcast
from mesalm.train.machines import send_folder
from mesalm.train.progress import Tally
from mesalm.train.randomness import random_state
from mesalm.train.recorder import Recorder


class Sender(Protocol):
    """What sends checkpoints elsewhere in the background; both methods return fields of journal lines about it."""

    def offer(self, checkpoint: Path, step: int) -> Iterable[dict[str, Any]]: ...

    def finish(self) -> Iterable[dict[str, Any]]: ...


class Saver:
    """The checkpoints of one loop: a line in the journal, and the ``uploads``, follow when one is on the disk."""

    def __init__(
        self,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        journal: Journal,
        recorder: Recorder,
        uploads: Sender | None,
    ) -> None:
        self._accelerator, self._checkpoints, self._uploads = accelerator, checkpoints, uploads
        self._journal, self._recorder = journal, recorder
        self._unreported: tuple[int, int] | None = None  # step and tokens of the checkpoint that is being written

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, position: dict[str, Any], tally: Tally, guard: Any
    ) -> None:
        """Write a checkpoint, or begin to, when the one before is written; all processes call it after the same step.

        ``position`` is that of this process's stream, ``guard`` the state of the loop's guard.
        """
        self.finish()
        states = gather_object([random_state()])
        positions = gather_object([position])
        if self._accelerator.is_main_process:
            state = {
                "tally": asdict(tally),
                "position": positions[0] if positions == positions[:1] * len(positions) else positions,
                "guard": guard,
            }
            self._journal.sync()
            self._unreported = tally.step, tally.tokens
            self._checkpoints.save(tally.step, model, optimiser, states, state)
            self.report()
        else:
            self._checkpoints.save_part(tally.step, model, optimiser)
        self._accelerator.wait_for_everyone()

    def report(self) -> None:
        """Report a checkpoint that has been written since, if there is one; raises what kept it from the disk."""
        if self._unreported is None or self._checkpoints.writing():
            return
        folder = self._checkpoints.finish()
        (step, tokens), self._unreported = self._unreported, None
        self._journal.write("checkpoint", step=step, tokens=tokens, folder=folder.name)
        if self._uploads is not None:
            self._recorder.report_all("upload", self._uploads.offer(folder, step))

    def newest(self) -> Path | None:
        """Return the newest checkpoint when it is on the disk of every machine; None if there is none.

        All processes call it after the same step, and all get the same.
        """
        self.finish()
        name = broadcast(self._accelerator, (found := self._checkpoints.newest()) and found.name)
        if name is None:
            return None
        send_folder(self._accelerator, self._checkpoints.folder / name)
        return self._checkpoints.folder / name

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and report it."""
        self._checkpoints.wait()
        self.report()

"""Save checkpoints during training, in the foreground or background, and record them in the journal."""

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
from mesalm.runs import complete_checkpoints, step_of
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.launch import broadcast
from mesalm.train.machines import send_folder
from mesalm.train.progress import Tally
from mesalm.train.randomness import random_state
from mesalm.train.recorder import Recorder


class Sender(Protocol):
    """Sends the checkpoints that are due elsewhere, in the background, and returns fields of journal lines about it."""

    def due(self, step: int) -> bool: ...

    def offer(self, checkpoint: Path, step: int) -> Iterable[dict[str, Any]]: ...

    def finish(self) -> Iterable[dict[str, Any]]: ...


class Saver:
    """Saves a loop's checkpoints; once one is on the disk, records it in the journal and passes it to ``uploads``."""

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

    def resumed(self, checkpoint: Path) -> None:
        """Write the line of a checkpoint, and upload the newest one due, where an interruption has prevented it."""
        if not self._journal.holds("checkpoint", step=step_of(checkpoint)):
            self._recorder.write("checkpoint", folder=checkpoint.name)
        if self._uploads is None:
            return
        steps = {step_of(folder) or 0: folder for folder in complete_checkpoints(self._checkpoints.folder)}
        newest = max(filter(self._uploads.due, steps), default=None)
        if newest is not None and not self._journal.holds("upload", checkpoint=steps[newest].name, failed=None):
            self._recorder.report_all("upload", self._uploads.offer(steps[newest], newest))

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, position: dict[str, Any], tally: Tally, guard: Any
    ) -> None:
        """Wait for the previous checkpoint, then write one or start to; all processes call this after the same step.

        ``position``: the position of this process's stream; ``guard``: the state of the loop's guard.
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
        """Report a checkpoint that has been written in the meantime, if any; raise the error if writing failed."""
        if self._unreported is None or self._checkpoints.writing():
            return
        folder = self._checkpoints.finish()
        (step, tokens), self._unreported = self._unreported, None
        self._journal.write("checkpoint", step=step, tokens=tokens, folder=folder.name)
        if self._uploads is not None:
            self._recorder.report_all("upload", self._uploads.offer(folder, step))

    def newest(self) -> Path | None:
        """Wait until the newest checkpoint is on the disk of every machine and return it; None if there is none.

        All processes call this after the same step, and get the same result.
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

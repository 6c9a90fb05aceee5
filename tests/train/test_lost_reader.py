"""A run whose standard error has lost its reader, as with ``| tee log`` on Ctrl-C, still writes its checkpoint."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mesalm.interrupts import Interrupted
from mesalm.train import training
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.loop import Outcome, Probe
from mesalm.train.pretrain import pretrain


class Broken(io.StringIO):
    """A standard error that takes nothing."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_control_c_without_a_reader_still_gives_a_checkpoint(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def to_no_one(descriptor: int, content: bytes) -> int:
        if descriptor == 2:
            raise BrokenPipeError(32, "Broken pipe")
        return write(descriptor, content)

    def end_both(model: Any, step: int) -> list[dict[str, Any]]:
        if step == 5:
            monkeypatch.setattr(sys, "stderr", Broken())
            monkeypatch.setattr(os, "write", to_no_one)
            os.kill(os.getpid(), signal.SIGINT)
        return []

    def train(*arguments: Any, probes: Sequence[Probe], **options: Any) -> Outcome:
        return training.run(*arguments, probes=[*probes, Probe("signal", 1, end_both, at_end=False)], **options)

    recipe = load()
    with pytest.raises(Interrupted):
        pretrain(recipe, train=train)
    newest = Checkpoints(recipe.folder / "checkpoints").newest()
    assert newest is not None
    assert newest.name == "step-00000006"

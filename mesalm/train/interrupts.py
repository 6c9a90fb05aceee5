"""Ending a run in good order on Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

ECHO_SECONDS = 2.0
"""Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun; a second within this is an echo."""


class Interrupted(SystemExit):
    """End the process after an interrupted run: exit code 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class Interrupts:
    """Note the first Ctrl-C or SIGTERM while this context is open; a second Ctrl-C ends the process at once.

    Outside the main thread, where python allows no signal handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._moment = 0.0
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A process forked to read data: Ctrl-C is the run's business, all else keeps its effect.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._moment = number, now
            # Past python's buffers, which the signal may have caught in the middle of a write.
            os.write(2, b"\nfinishing this step, then a checkpoint; Ctrl-C again to abort at once\n")
            return
        echo = "TORCHELASTIC_RUN_ID" in os.environ and now - self._moment < ECHO_SECONDS
        if number == signal.SIGINT and not echo:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

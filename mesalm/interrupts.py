"""End a process cleanly on Ctrl-C and on the signals with which terminals and schedulers end processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT)
"""SIGTERM from kill and launchers, SIGHUP from a closed terminal, SIGUSR1, SIGUSR2 and SIGXCPU from schedulers ahead
of the end of a job's time, SIGINT from Ctrl-C."""

ECHO_SECONDS = 2.0
"""Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun; a second within this is an echo."""


class Interrupted(SystemExit):
    """The end of the process after a signal: exit code 128 plus its number, 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class Interrupts:
    """A context that records the first of `SIGNALS`; a second Ctrl-C ends the process immediately.

    Set ``answered`` when the run has stopped because of the signal; otherwise it is passed to the previous handler at
    the end of the context. A signal that was ignored before, such as SIGHUP under nohup, stays ignored. Outside the
    main thread, where Python allows no signal handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.answered = False
        self._moment = 0.0
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._earlier = _handle(SIGNALS, self._note)
        return self

    def __exit__(self, *details: object) -> None:
        _put_back(self._earlier)
        if self.received is not None and not self.answered:
            os.kill(self._process, self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _in_a_child(self._process, number):
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._moment = number, now
            name = signal.Signals(number).name
            line = f"\n{name}: finishing this step, then a checkpoint; Ctrl-C again to abort at once\n"
            with suppress(OSError):  # the same Ctrl-C may have ended the reader, and a closed terminal is gone
                # Past python's buffers, which the signal may have caught in the middle of a write.
                os.write(2, line.encode())
            return
        echo = "TORCHELASTIC_RUN_ID" in os.environ and now - self._moment < ECHO_SECONDS
        if number == signal.SIGINT and not echo:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def cleared_away() -> Iterator[None]:
    """Raise Interrupted on `SIGNALS`, so that unfinished files are deleted; a second signal ends the process.

    Ctrl-C raises KeyboardInterrupt as usual.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if _in_a_child(process, number):
            return
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number)

    earlier = _handle([number for number in SIGNALS if number != signal.SIGINT], stop)
    try:
        yield
    finally:
        _put_back(earlier)


def _handle(numbers: Any, handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set a handler for signals that are not ignored; return those that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}


def _put_back(earlier: dict[int, Any]) -> None:
    for number, handler in earlier.items():
        signal.signal(number, handler)
    earlier.clear()


def _in_a_child(process: int, number: int) -> bool:
    """Return whether this is a process forked to read data, which only SIGTERM ends."""
    if os.getpid() == process:
        return False
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return True

"""Detect that one of several processes hangs or has ended, and report which."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import DistError, TCPStore

from mesalm.files import described
from mesalm.interrupts import Interrupted
from mesalm.train.launch import LaunchError

BEATS = 10
"""Heartbeats per timeout."""

WAY_ON = "the run has ended; fix that process, then run the same command to resume from the newest checkpoint"

SILENT = "no sign of life"

LEFT = "left: "
"""The prefix of the reason in the last message of a process; after a normal end there is no reason."""


class Watch:
    """The heartbeats of a run's processes: a thread of each writes its own to a store and reads those of the others.

    A slow process still sends heartbeats; one that is stopped, or whose machine is down, does not.
    ``timeout``: seconds without a heartbeat, counted in this process's own beats, so that its own pauses do not count.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.world, self.timeout = accelerator.process_index, accelerator.num_processes, timeout
        self.places = gather_object([(platform.node(), os.getppid(), os.getpid())])
        # Arms and seeds are runs one after another, with one store.
        (self.name,) = broadcast_object_list([f"mesalm-{os.getpid()}-{time.time_ns()}"])
        # A separate connection, since that of the process group may be blocked.
        self.store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
        self.keys = [f"{self.name}/alive-{rank}" for rank in range(self.world)]
        self.beat = 0
        self.meetings = 0
        self.ended = threading.Event()
        self._say_alive()
        accelerator.wait_for_everyone()
        self.thread = threading.Thread(target=self._watch, name="mesalm-watch", daemon=True)
        self.thread.start()

    def meet(self) -> None:
        """Wait until all processes are here, for as long as it takes."""
        self.meetings += 1
        name = f"{self.name}/meeting-{self.meetings}"
        self.store.add(name, 1)
        while self.store.add(name, 0) < self.world:
            time.sleep(0.2)

    def lost(self) -> dict[int, str]:
        """Return the processes that have ended, or else those that have not themselves lost another one, and why."""
        self.store.set(f"{self.name}/waiting-{self.rank}", "")
        before = self.store.multi_get(self.keys)
        end = time.monotonic() + min(3 * self.timeout / BEATS, 10.0)
        absent: dict[int, bytes] = {}
        ended: dict[int, str] = {}
        while not ended and time.monotonic() < end:
            with suppress(Interrupted):  # launchers send a signal to the others when one is gone
                now = self.store.multi_get(self.keys)
                waiting = [self.store.check([f"{self.name}/waiting-{rank}"]) for rank in range(self.world)]
                absent = {rank: now[rank] for rank in range(self.world) if not waiting[rank]}
                ended = {rank: _reason(last) for rank, last in absent.items() if _reason(last)}
                time.sleep(0.0 if ended else 0.2)
        still = [rank for rank, last in absent.items() if last == before[rank]]
        return ended or dict.fromkeys(still or absent, "is gone or does not answer")

    def described(self, ranks: list[int]) -> str:
        """Name processes with their machines."""
        return ", ".join(f"process {rank} on {self.places[rank][0]}" for rank in ranks)

    def end(self, reason: str = "") -> None:
        """Stop watching, and tell the others the reason if there was an error."""
        self.ended.set()
        self.thread.join()
        with suppress(DistError):
            self.store.set(self.keys[self.rank], f"{LEFT}{reason}")

    def _say_alive(self) -> None:
        self.beat += 1
        self.store.set(self.keys[self.rank], str(self.beat))

    def _watch(self) -> None:
        seen, still = [b""] * self.world, [0] * self.world
        try:
            while not self.ended.wait(self.timeout / BEATS):
                self._say_alive()
                now = self.store.multi_get(self.keys)
                still = [count + 1 if new == old else 0 for new, old, count in zip(now, seen, still, strict=True)]
                seen = now
                silent = {
                    rank: _reason(now[rank]) or SILENT
                    for rank, count in enumerate(still)
                    if count >= BEATS and now[rank] != LEFT.encode()
                }
                if silent:
                    self._give_up(silent)
        except DistError:
            if not self.ended.is_set():
                self._leave(f"the store of the processes at {os.environ['MASTER_ADDR']} does not answer; {WAY_ON}")

    def _give_up(self, silent: dict[int, str]) -> None:
        host, parent, _ = self.places[self.rank]
        beside = [rank for rank, place in enumerate(self.places) if place[0] == host and rank not in silent]
        for rank, reason in silent.items():
            if reason == SILENT and self.places[rank][:2] == (host, parent):  # the launcher would wait for it
                with suppress(ProcessLookupError):
                    os.kill(self.places[rank][2], signal.SIGKILL)
        first = next(iter(silent))
        reason = silent[first] if silent[first] != SILENT else f"{SILENT} for {self.timeout:g} seconds"
        self._leave(f"{self.described(list(silent))}: {reason}; {WAY_ON}" if self.rank == beside[0] else "")

    def _leave(self, message: str) -> None:
        if message:
            with suppress(OSError):  # without a reader it must end too
                os.write(2, f"mesalm: {message}\n".encode())
        os._exit(2)


def _reason(last: bytes) -> str:
    """Return the reason in the last message of a process; "" if there is none."""
    return last.decode().removeprefix(LEFT) if last.startswith(LEFT.encode()) else ""


@contextmanager
def watching(accelerator: Accelerator, timeout: float) -> Iterator[Watch | None]:
    """Watch the processes of a run while the block runs, if there are several; ``timeout`` as in `Watch`.

    A lost process ends all others, with a line that names it: from the thread if it is silent, as LaunchError if
    communication with it fails.
    """
    if accelerator.num_processes == 1:
        yield None
        return
    watch = Watch(accelerator, timeout)
    try:
        yield watch
        watch.end()
    except BaseException as error:
        met = error.__context__ if isinstance(error, Interrupted) else error
        lost = watch.lost() if isinstance(met, DistError) or "gloo" in str(met) else {}
        fault = f"{watch.described(list(lost))}: {next(iter(lost.values()))}; {WAY_ON}" if lost else ""
        said = described(error) if isinstance(error, OSError) else " ".join(str(error).split())
        watch.end("has ended, " + (fault or said or type(error).__name__))
        if fault:
            raise LaunchError(fault) from error
        raise

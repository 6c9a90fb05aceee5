"""Noticing that one of several processes hangs or is gone, and saying which."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import DistError, TCPStore

from mesalm.train.launch import LaunchError

BEATS = 10
"""Signs of life that a process gives in the time after which it counts as lost."""

WAY_ON = "the run has ended; see to that process, then give the same command to go on from the newest checkpoint"


class Watch:
    """The signs of life of the processes of a run: a thread of each writes its own to a store and reads the others'.

    A process that is slow gives them all the same; one that is stopped, or whose machine is gone, does not.
    ``timeout`` is in seconds without one, counted in this process's own beats: while it sleeps it accuses nobody.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.world, self.timeout = accelerator.process_index, accelerator.num_processes, timeout
        self.places = gather_object([(platform.node(), os.getppid(), os.getpid())])
        # Arms and seeds are runs one after another, with one store.
        (self.name,) = broadcast_object_list([f"mesalm-{os.getpid()}-{time.time_ns()}"])
        # A connection of its own: the one of the group may be waiting.
        self.store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=timeout)
        )
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

    def lost(self) -> list[int]:
        """Return the processes that have not said, a short time after this one, that they lost another."""
        self.store.set(f"{self.name}/waiting-{self.rank}", "")
        time.sleep(min(5.0, self.timeout / 2))
        return [rank for rank in range(self.world) if not self.store.check([f"{self.name}/waiting-{rank}"])]

    def described(self, ranks: list[int]) -> str:
        """Name processes with their machines."""
        return ", ".join(f"process {rank} on {self.places[rank][0]}" for rank in ranks)

    def end(self) -> None:
        """Stop watching."""
        self.ended.set()
        self.thread.join()

    def _key(self, rank: int) -> str:
        return f"{self.name}/alive-{rank}"

    def _say_alive(self) -> None:
        self.beat += 1
        self.store.set(self._key(self.rank), str(self.beat))

    def _watch(self) -> None:
        keys = [self._key(rank) for rank in range(self.world)]
        seen, still = [b""] * self.world, [0] * self.world
        try:
            while not self.ended.wait(self.timeout / BEATS):
                self._say_alive()
                now = self.store.multi_get(keys)
                still = [count + 1 if new == old else 0 for new, old, count in zip(now, seen, still, strict=True)]
                seen = now
                silent = [rank for rank, count in enumerate(still) if count >= BEATS]
                if silent:
                    self._give_up(silent)
        except DistError:
            if not self.ended.is_set():
                self._leave(f"the store of the processes at {os.environ['MASTER_ADDR']} does not answer; {WAY_ON}")

    def _give_up(self, silent: list[int]) -> None:
        host, parent, _ = self.places[self.rank]
        beside = [rank for rank, place in enumerate(self.places) if place[0] == host and rank not in silent]
        for rank in silent:
            if self.places[rank][:2] == (host, parent):  # the launcher would wait for it
                os.kill(self.places[rank][2], signal.SIGKILL)
        message = f"{self.described(silent)}: no sign of life for {self.timeout:g} seconds; {WAY_ON}"
        self._leave(message if self.rank == beside[0] else "")

    def _leave(self, message: str) -> None:
        if message:
            os.write(2, f"mesalm: {message}\n".encode())
        sys.stdout.flush()
        os._exit(2)


@contextmanager
def watching(accelerator: Accelerator, timeout: float) -> Iterator[Watch | None]:
    """Watch over the processes of a run while the block runs, if there are several; ``timeout`` as in `Watch`.

    A process that is lost ends all, with a line that names it: where it is silent, from the thread; where talking to
    it fails, as LaunchError.
    """
    if accelerator.num_processes == 1:
        yield None
        return
    watch = Watch(accelerator, timeout)
    try:
        yield watch
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        lost = watch.lost()
        if not lost:
            raise
        raise LaunchError(f"{watch.described(lost)}: is gone or does not answer; {WAY_ON}") from error
    finally:
        watch.end()

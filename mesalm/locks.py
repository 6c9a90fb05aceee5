"""Locks between processes that end with their holder: a killed process or a restarted machine leaves none behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mesalm.files import writing


@contextmanager
def locked(path: Path, busy: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the operating system's lock on the file ``path``, whose folder must exist, while the block runs.

    If another process holds it, ``busy`` is called with a description of that process, and may raise; if it returns,
    this waits for the lock. Without ``busy``, BlockingIOError is raised. The file stays, since deleting it is not safe.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if busy is None:
            raise BlockingIOError(_holder(path)) from None
        busy(_holder(path))
        lock.acquire()
    try:
        with writing(path):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
        path.write_text("", encoding="utf-8")
    finally:
        lock.release()


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"

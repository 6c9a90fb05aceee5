"""Locks: they end with the process that holds them, whatever it has started."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mesalm.locks import locked


def refuse(holder: str) -> None:
    raise BlockingIOError(holder)


def test_a_lock_ends_with_its_process_and_not_with_the_last_child_of_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(path, refuse):
            child = os.fork()  # as a worker that reads data, which may outlive a killed run by seconds
            if child == 0:
                time.sleep(60)
                os._exit(0)
            time.sleep(0.2)
            os.write(writing, str(child).encode())
            time.sleep(60)
        os._exit(0)
    child = int(os.read(reading, 20))
    with pytest.raises(BlockingIOError, match=f"^process {process} on {os.uname().nodename}$"), locked(path, refuse):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with locked(path, refuse):
        os.kill(child, 0)  # it lives
    os.kill(child, signal.SIGKILL)
    assert path.read_text() == ""

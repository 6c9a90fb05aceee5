"""Run a script in one of several processes, and kill processes just before a file is written; run by test_sharded.py.

KILL names the process that watches, the files it watches for (a pattern), and whether it is killed alone or with the
others of its launcher, in JSON.
"""

from __future__ import annotations

import fnmatch
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

CHANGING = ("os.rename", "os.remove", "os.rmdir")


def kill(everyone: bool) -> None:
    """Kill this process, the last, and first the others if everyone is meant."""
    parent = os.getppid()
    others = Path(f"/proc/{parent}/task/{parent}/children").read_text().split() if everyone else []
    for other in {int(number) for number in others} - {os.getpid()}:
        os.kill(other, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Kill where a file of the pattern is about to be written, renamed or deleted."""
    writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if (writes or event in CHANGING) and fnmatch.fnmatch(str(arguments[0]), WANTED["files"]):
        kill(WANTED["everyone"])


if __name__ == "__main__":
    WANTED = json.loads(os.environ["KILL"])
    if os.environ["RANK"] == str(WANTED["process"]):
        sys.addaudithook(watch)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""A process that is lost ends the run and is named; one that is slow does not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesalm.train.watch import watching

SCRIPT = Path(__file__).with_name("lost_process.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("killed", "process 0 says: process 1 on {node}: is gone or does not answer; the run has ended"),
        ("failed", "process 0 says: process 1 on {node}: has ended, its disk is full; the run has ended"),
        ("stopped", "mesalm: process 1 on {node}: no sign of life for 3 seconds; the run has ended"),
        ("slow", ""),
    ],
)
def test_a_lost_process_is_named(how: str, words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT), how]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    begun = time.monotonic()
    done = subprocess.run(command, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)
    assert time.monotonic() - begun < 60 + 60  # a minute, after torch was loaded twice by a busy machine
    if how == "slow":
        assert done.returncode == 0, done.stderr
        assert "process 1" not in done.stderr
    else:
        assert done.returncode != 0
        assert words.format(node=os.uname().nodename) in done.stderr


def test_the_others_are_told_of_a_full_disk_as_the_user_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mesalm.train.watch.Watch", lambda *arguments: SimpleNamespace(end=said.append))
    accelerator: Any = SimpleNamespace(num_processes=2)
    with pytest.raises(OSError, match="full"), watching(accelerator, 1.0):
        raise OSError(errno.ENOSPC, "Disk full", "runs/tiny")
    assert said == ["has ended, runs/tiny: disk full; free some space, then run the same command again"]

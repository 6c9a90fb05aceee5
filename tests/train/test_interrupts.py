"""Signals in a process of its own: the first is noted, a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mesalm.train.interrupts import Interrupted, Interrupts

SCRIPT = """
import os, signal, time
from mesalm.train.interrupts import Interrupts
with Interrupts() as interrupts:
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.received == signal.SIGINT
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
    print("still here", flush=True)
"""


@pytest.mark.parametrize(("under_torchrun", "code", "said"), [(False, -signal.SIGINT, ""), (True, 0, "still here\n")])
def test_second_control_c_aborts_but_its_echo_does_not(under_torchrun: bool, code: int, said: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    if under_torchrun:
        environment["TORCHELASTIC_RUN_ID"] = "x"
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == code
    assert done.stdout == "noted\n" + said
    assert "Ctrl-C again" in done.stderr


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_exit_codes() -> None:
    assert Interrupted(signal.SIGINT).code == 130
    assert Interrupted(signal.SIGTERM).code == 143

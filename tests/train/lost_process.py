"""Add numbers over two processes, of which one is lost in the middle or is merely slow; run by test_watch.py."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from mesalm.interrupts import cleared_away
from mesalm.train.launch import make_accelerator
from mesalm.train.watch import watching

TIMEOUT = 3.0
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def work(how: str) -> None:
    """Add for ever, or twenty times where nobody is lost."""
    accelerator = make_accelerator(device="cpu", precision="fp32")
    with watching(accelerator, TIMEOUT) as watch:
        assert watch is not None
        watch.meet()
        number = 0
        while number < 20 or how != "slow":
            accelerator.reduce(torch.ones(3), "sum")
            number += 1
            if number == 10 and accelerator.process_index == 1:
                if how in SIGNALS:
                    os.kill(os.getpid(), SIGNALS[how])
                elif how == "failed":
                    raise ValueError("its disk is full")
                time.sleep(2 * TIMEOUT)


if __name__ == "__main__":
    try:
        with cleared_away():  # as every command of mesalm
            work(sys.argv[1])
    except ValueError as error:
        print(f"process {os.environ['RANK']} says: {error}", file=sys.stderr)
        sys.exit(2)

"""What a person sees while data are prepared: a plain line a stage, and bars where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets


def say(line: str) -> None:
    """Print a line to the standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def hidden_bars(hide: bool = True) -> Iterator[None]:
    """Hide the bars of `datasets`, which ours are too, while the block runs, if ``hide`` or in a log file."""
    if (not hide and sys.stderr.isatty()) or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()

"""Help texts that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mesalm.settings import LARGEST_SEED

MODEL = "a run folder, a saved or published model's folder, or a name on the Hub"
OVERRIDES = "settings to change, as dotted.key=YAML value, for instance optim.learning_rate=1e-3"


def add_fields_help(command: argparse.ArgumentParser, fields: Callable[[], str]) -> None:
    """Add ``--help``, which prints every recipe field after the command's own help; made only when asked for."""

    class WithFields(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            parser.print_help()
            print("\nrecipe fields:\n" + fields())
            parser.exit()

    command.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that is a whole number from ``least`` to ``most``."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        number = int(text) if text.strip().lstrip("+-").isdecimal() else None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, not {text!r}")
        return number

    return read


count = whole(1)
"""The type of an option that counts something."""

seed = whole(0, LARGEST_SEED)
"""The type of ``--seed``."""


def folder_to_write(text: str) -> Path:
    """Return the path of a folder that can be made or written to; refuse a file, or a path through one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a folder")
    path = Path(text).expanduser()
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise argparse.ArgumentTypeError(f"{place} is a file; name a folder")
    return path


def file_to_write(text: str) -> Path:
    """Return the path of a file that can be written; refuse a folder, or a path through a file."""
    path = Path(text).expanduser()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text or 'an empty name'} is a folder; name a file")
    folder_to_write(str(path.parent))
    return path

"""Arguments, help texts and types of options that several commands share."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesalm.files import expanded
from mesalm.settings import LARGEST_SEED

MODEL = "a run folder, a saved or published model's folder, or a name on the Hub"


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add the settings to change, ``dotted.key=YAML value``."""
    text = "settings to change, as dotted.key=YAML value, such as optim.learning_rate=1e-3"
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Add a recipe and the settings to change in it."""
    command.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    add_overrides(command)


def add_texts(command: argparse.ArgumentParser) -> None:
    """Add ``--text``, files of held-out text."""
    command.add_argument(
        "--text", action="append", default=[], dest="texts", metavar="FILE", help="held-out text; may be repeated"
    )


def add_device(command: argparse.ArgumentParser, device: str = "auto") -> None:
    """Add the options for opening a model: ``--device`` and ``--trust-remote-code``."""
    command.add_argument("--device", default=device, help=f"auto, cpu, cuda, ... (default {device})")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def add_code(command: argparse.ArgumentParser) -> None:
    """Add ``--code``, Python files to import first."""
    text = "your own Python file to import first, such as one with a mixer; may be repeated"
    command.add_argument("--code", action="append", default=[], type=Path, metavar="FILE", help=text)


def chosen(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the named options as keyword arguments."""
    return {name: getattr(options, name) for name in names}


def refuse_beside(options: argparse.Namespace, other: str, *names: str) -> None:
    """Raise ValueError for the first option in ``names`` that is not at its default, because ``other`` ignores it."""
    for name in names:
        if getattr(options, name) != options.parser.get_default(name):
            option = next(action for action in options.parser._actions if action.dest == name).option_strings[0]
            raise ValueError(f"{option}: has no effect with {other}; leave one of the two out")


def add_fields_help(command: argparse.ArgumentParser, fields: Callable[[], str]) -> None:
    """Add ``--help``, which also prints every recipe field; the text is made only when it is printed."""

    class WithFields(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            parser.print_help()
            print("\nrecipe fields:")
            for line in fields().splitlines():
                print(wrapped(line, shutil.get_terminal_size().columns - 2))  # the width that argparse wraps at
            parser.exit()

    command.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")


def wrapped(line: str, width: int) -> str:
    """Return a line broken at blanks, what follows the first break indented by four blanks."""
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from ``least`` to ``most``."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        number = int(text) if text.strip().lstrip("+-").isdecimal() else None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, not {text!r}")
        return number

    return read


count = whole(1)
"""The argparse type of an option that counts something."""

seed = whole(0, LARGEST_SEED)
"""The argparse type of ``--seed``."""


def folder_to_write(text: str) -> Path:
    """Return the path of a folder that exists or can be created; reject a file, or a path through a file."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a folder")
    path = expanded(text)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise argparse.ArgumentTypeError(f"{place} is a file; name a folder")
    return path


def figure_to_write(text: str) -> Path:
    """Return the path of an SVG file that can be written; reject other suffixes."""
    path = file_to_write(text)
    if path.suffix.lower() != ".svg":
        raise argparse.ArgumentTypeError(f"{text}: figures are SVG; end the name in .svg")
    return path


def file_to_write(text: str) -> Path:
    """Return the path of a file that can be written; reject a folder, or a path through a file."""
    path = expanded(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text or 'an empty name'} is a folder; name a file")
    folder_to_write(str(path.parent))
    return path

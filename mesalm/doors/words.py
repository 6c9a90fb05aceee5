"""Help texts that several doors share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MODEL = "a run folder, a saved or published model's folder, or a name on the Hub"
OVERRIDES = "settings to change, as dotted.key=YAML value, for instance optim.learning_rate=1e-3"


def add_fields_help(door: argparse.ArgumentParser, fields: Callable[[], str]) -> None:
    """Add ``--help``, which prints every recipe field after the door's own help; made only when asked for."""

    class WithFields(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            parser.print_help()
            print("\nrecipe fields:\n" + fields())
            parser.exit()

    door.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")

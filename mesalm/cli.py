"""The command line: every door of the house behind one program."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from mesalm.doors import DOORS
from mesalm.files import described
from mesalm.train.interrupts import Interrupted, cleared_away


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one door and return the process's exit code: 0 done, 2 bad input, 128 plus a signal's number."""
    options = parse(arguments)
    try:
        with cleared_away():
            code = int(options.door(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # who reads the output has seen enough, as in `mesalm lab list | head`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        if options.traceback:
            raise
        line = described(error) if isinstance(error, OSError) else error
        print(f"mesalm {options.command}: {line}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"mesalm {options.command}: ended by {signal.Signals(stopped.signal_number).name}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt as stopped:
        print("; ".join([f"mesalm {options.command}: interrupted", *map(str, stopped.args)]), file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; settings and models may also follow options, which argparse alone does not allow."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if "--traceback" in rest:  # it stands behind an action of a door, whose own parser does not know it
        rest.remove("--traceback")
        options.traceback = True
    listed = getattr(options, "overrides", getattr(options, "models", None))
    if rest and (listed is None or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if listed is not None:
        listed.extend(rest)
    return options


def parser() -> argparse.ArgumentParser:
    """Build the parser of all doors."""
    top = argparse.ArgumentParser(prog="mesalm", description="Pretrain small language models with mesa attention.")
    doors = top.add_subparsers(dest="command", required=True, metavar="DOOR")
    for add in DOORS:
        add(doors)
    for door in doors.choices.values():
        door.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return top

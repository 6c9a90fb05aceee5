"""The command line `mesalm` with all its commands."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import transformers

from mesalm.commands import COMMANDS
from mesalm.commands.words import add_code, add_fields_help
from mesalm.files import described, import_file
from mesalm.interrupts import Interrupted, cleared_away
from mesalm.settings import nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 for success, 2 for bad input, 128 plus a signal's number."""
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when datasets is imported
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it was closed
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show must not end a command
    try:
        try:
            return _run(parse(arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # also behind --help; at the interpreter's exit it would be too late
    except BrokenPipeError:
        # the reader has closed the pipe, as in `mesalm lab list | head`; the rest is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what was printed last, or --help, did not get through
        print(f"mesalm: {described(error)}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _run(options: argparse.Namespace) -> int:
    """Run the command of a parsed command line; print errors as one line."""
    try:
        with cleared_away():
            for file in options.code:
                import_file(file)
            return int(options.run(options) or 0)
    except BrokenPipeError:
        raise
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


LISTS = ("overrides", "models", "runs", "claims")
"""Names of the arguments that take any number of words."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; unlike in plain argparse, settings and models may also follow options."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if "--traceback" in rest:  # behind an action of a command, whose own parser does not know it
        rest.remove("--traceback")
        options.traceback = True
    listed = next((found for name in LISTS if isinstance(found := getattr(options, name, None), list)), None)
    unknown = [word for word in rest if listed is None or word.startswith("-")]
    if unknown:
        options.parser.error(unrecognised(unknown[0], options.parser))
    if listed is not None:
        listed.extend(rest)
    return options


def unrecognised(word: str, command: argparse.ArgumentParser) -> str:
    """Return the error message for a word that a command does not accept."""
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; see `{command.prog} --help`"
    option = word.partition("=")[0]
    guess = nearest(option, [known for known in command._option_string_actions if known.startswith("--")])
    return f"there is no option {option}; " + (f"did you mean {guess}?" if guess else f"see `{command.prog} --help`")


class Parser(argparse.ArgumentParser):
    """A parser that reports a bad command line in one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = Parser(prog="mesalm", description="Pretrain small language models with mesa attention.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, file in COMMANDS.items():
        fields = getattr(file, "fields", None)
        command = commands.add_parser(name, help=file.HELP, add_help=fields is None)
        if fields is not None:
            add_fields_help(command, fields)
        file.arguments(command)
        command.set_defaults(run=file.run, parser=command)
        add_code(command)
        command.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return top

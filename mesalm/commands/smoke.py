"""Try a recipe in miniature."""

from __future__ import annotations

import argparse

from mesalm.commands.words import OVERRIDES


def add_smoke(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm smoke`."""
    command = commands.add_parser("smoke", help="train a recipe in miniature on the CPU, to see that all of it works")
    command.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES)
    command.add_argument("--arm", action="append", metavar="NAME", help="try this arm only; may be given again")
    command.set_defaults(run=run_smoke)


def run_smoke(options: argparse.Namespace) -> None:
    """Try a recipe, every arm of it in turn, in a temporary folder."""
    import tempfile
    from pathlib import Path

    from mesalm.train.seeds import planned_runs
    from mesalm.train.smoke import smoke

    for run in planned_runs(options.recipe, options.overrides, options.arm):
        with tempfile.TemporaryDirectory() as folder:
            print(smoke(run, Path(folder)))

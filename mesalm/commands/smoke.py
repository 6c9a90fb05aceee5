"""Try a recipe in miniature."""

from __future__ import annotations

import argparse

from mesalm.commands.words import add_recipe

HELP = "train a recipe in miniature on the CPU, to see that all of it works"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm smoke`."""
    add_recipe(command)
    command.add_argument("--arm", action="append", metavar="NAME", help="try this arm only; may be given again")


def run(options: argparse.Namespace) -> None:
    """Try a recipe, every arm of it in turn, in a temporary folder."""
    import tempfile
    from pathlib import Path

    from mesalm.train.planned import planned_runs
    from mesalm.train.smoke import smoke

    for recipe in planned_runs(options.recipe, options.overrides, options.arm):
        with tempfile.TemporaryDirectory() as folder:
            print(smoke(recipe, Path(folder)))

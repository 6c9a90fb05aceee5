"""Test a recipe with a tiny model."""

from __future__ import annotations

import argparse

from mesalm.commands.words import add_recipe

HELP = "test a recipe by training a tiny version of it on the CPU"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm smoke`."""
    add_recipe(command)
    command.add_argument("--arm", action="append", metavar="NAME", help="test this arm only; may be repeated")


def run(options: argparse.Namespace) -> None:
    """Test each arm of a recipe in turn in a temporary folder."""
    import tempfile
    from pathlib import Path

    from mesalm.train.planned import planned_runs
    from mesalm.train.smoke import smoke

    for recipe in planned_runs(options.recipe, options.overrides, options.arm):
        with tempfile.TemporaryDirectory() as folder:
            print(smoke(recipe, Path(folder)))

"""Turn text into rows."""

from __future__ import annotations

import argparse

from mesalm.commands.words import OVERRIDES


def add_prepare(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm prepare`."""
    command = commands.add_parser("prepare", help="turn a recipe's text into packed rows of tokens")
    command.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES)
    command.set_defaults(run=prepare)


def prepare(options: argparse.Namespace) -> None:
    """Prepare a recipe's data and say what came out."""
    from mesalm.data.prepare import prepare as prepare_data
    from mesalm.train.recipe import load_recipe

    prepared = prepare_data(load_recipe(options.recipe, options.overrides).data)
    print(prepared.summary())

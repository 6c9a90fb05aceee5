"""Turn text into rows."""

from __future__ import annotations

import argparse

from mesalm.doors.words import OVERRIDES


def prepare_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm prepare`."""
    door = doors.add_parser("prepare", help="turn a recipe's text into packed rows of tokens")
    door.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    door.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES)
    door.set_defaults(door=prepare)


def prepare(options: argparse.Namespace) -> None:
    """Prepare a recipe's data and say what came out."""
    from mesalm.data.prepare import prepare as prepare_data
    from mesalm.train.recipe import load_recipe

    prepared = prepare_data(load_recipe(options.recipe, options.overrides).data)
    print(prepared.summary())

"""Prepare a recipe's data."""

from __future__ import annotations

import argparse

from mesalm.commands.words import add_recipe

HELP = "turn a recipe's text into packed rows of tokens"
arguments = add_recipe


def run(options: argparse.Namespace) -> None:
    """Prepare a recipe's data and print a summary."""
    from mesalm.data.prepare import prepare
    from mesalm.train.recipe import load_recipe

    print(prepare(load_recipe(options.recipe, options.overrides).data).summary())

"""Train a recipe."""

from __future__ import annotations

import argparse
import os
import sys

from mesalm.commands.words import add_recipe

HELP = "train a recipe's model, or each of its arms"


def fields() -> str:
    """Return a line for every setting of a recipe."""
    from mesalm.train.recipe import help_text

    return help_text()


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm train`."""
    add_recipe(command)
    command.add_argument("--arm", action="append", metavar="NAME", help="train this arm only; may be given again")
    command.add_argument(
        "--seeds", metavar="N", help="train with several seeds, <name>-<arm>-s<seed>: 0,1,2 those, 3 the first three"
    )
    command.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="go on from this run's newest checkpoint: auto if there is one, must, or never (sets the old run aside)",
    )


def run(options: argparse.Namespace) -> None:
    """Train a recipe, every arm of it in turn, with every seed."""
    from mesalm.train.guard import NonFiniteError
    from mesalm.train.pretrain import pretrain
    from mesalm.train.seeds import plan_line, planned_runs, read_seeds

    seeds = None if options.seeds is None else read_seeds(options.seeds)
    failed = []
    runs = planned_runs(options.recipe, options.overrides, options.arm, seeds)
    if os.environ.get("RANK", "0") == "0":
        print(f"to train: {plan_line(runs)}", file=sys.stderr)
    for recipe in runs:
        try:
            print(f"trained: {pretrain(recipe, resume=options.resume)}")
        except NonFiniteError as error:
            failed.append(f"{recipe.name}: {error}")  # the later runs were asked for too
    if failed:
        raise NonFiniteError("; ".join(failed))

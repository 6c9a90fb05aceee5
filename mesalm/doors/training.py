"""Train a recipe."""

from __future__ import annotations

import argparse

from mesalm.doors.words import OVERRIDES


def train_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm train`."""

    class WithFields(argparse.Action):
        """Print the help of every recipe field after the door's own; made only when asked for."""

        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from mesalm.train.recipe import help_text

            parser.print_help()
            print("\nrecipe fields:\n" + help_text())
            parser.exit()

    door = doors.add_parser("train", help="train a recipe's model, or each of its arms", add_help=False)
    door.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")
    door.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    door.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    door.add_argument("--arm", action="append", metavar="NAME", help="train this arm only; may be given again")
    door.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="go on from this run's newest checkpoint: auto if there is one, must, or never (sets the old run aside)",
    )
    door.set_defaults(door=train)


def train(options: argparse.Namespace) -> None:
    """Train a recipe, every arm of it in turn."""
    from mesalm.train.guard import NonFiniteGradientError
    from mesalm.train.pretrain import pretrain
    from mesalm.train.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    for arm in options.arm or list(recipe.arms) or [None]:
        run = load_recipe(options.recipe, options.overrides, arm=arm)
        try:
            print(f"trained: {pretrain(run, resume=options.resume)}")
        except NonFiniteGradientError as error:
            raise SystemExit(f"mesalm train: {error}") from None

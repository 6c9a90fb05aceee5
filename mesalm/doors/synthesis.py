"""Train and score models on synthetic tasks."""

from __future__ import annotations

import argparse

from mesalm.doors.words import OVERRIDES


def synth_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm synth`."""

    class WithFields(argparse.Action):
        """Print the help of every recipe field after the door's own; made only when asked for."""

        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from mesalm.train.synthetic_recipe import synthetic_help

            parser.print_help()
            print("\nrecipe fields:\n" + synthetic_help())
            parser.exit()

    door = doors.add_parser("synth", help="train models from scratch on synthetic tasks and score them", add_help=False)
    door.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")
    door.add_argument("recipe", help="a YAML file or the name of a packaged recipe of this kind")
    door.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    door.add_argument("--report-only", action="store_true", help="write the report of the runs that are finished")
    door.set_defaults(door=synth)


def synth(options: argparse.Namespace) -> None:
    """Run a grid, cell by cell, and write its report."""
    from mesa_eval.synthetic_report import print_table, write_synthetic_report
    from mesa_eval.synthetic_scores import score_model
    from mesalm.train.synthetic_grid import finished_cells, read_results, run_grid
    from mesalm.train.synthetic_recipe import load_synthetic_recipe

    recipe = load_synthetic_recipe(options.recipe, options.overrides)
    if not options.report_only:
        run_grid(recipe, score_model)
    finished_cells(recipe, read_results(recipe.folder / "cells"))

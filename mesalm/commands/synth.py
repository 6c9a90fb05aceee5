"""Train and score models on synthetic tasks."""

from __future__ import annotations

import argparse

from mesalm.commands.words import add_recipe

HELP = "train models from scratch on synthetic tasks and score them"


def fields() -> str:
    """Return the description of every setting of a recipe and of every task."""
    from mesalm.synthetic.recipe import synthetic_help

    return synthetic_help()


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm synth`."""
    add_recipe(command)
    command.add_argument("--report-only", action="store_true", help="train nothing; report the finished runs")


def run(options: argparse.Namespace) -> None:
    """Run the cells of a grid one by one and report the results."""
    from mesa_eval.synthetic.report import report_grid
    from mesa_eval.synthetic.scores import score_model
    from mesalm.settings import SettingsError
    from mesalm.synthetic.grid import run_grid
    from mesalm.synthetic.recipe import load_synthetic_recipe
    from mesalm.synthetic.results import cells_folder, read_results, write_results

    recipe = load_synthetic_recipe(options.recipe, options.overrides)
    if options.report_only and not read_results(cells_folder(recipe)):
        raise SettingsError(f"{recipe.folder}: no run of this grid has ended; leave out --report-only")
    try:
        if not options.report_only:
            run_grid(recipe, score_model)
    finally:
        folder = write_results(recipe)
    print(f"report: {report_grid(folder)}")

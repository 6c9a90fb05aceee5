"""Train and score models on synthetic tasks."""

from __future__ import annotations

import argparse

from mesalm.commands.words import OVERRIDES, add_fields_help


def add_synth(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm synth`."""

    def fields() -> str:
        from mesalm.synthetic.recipe import synthetic_help

        return synthetic_help()

    command = commands.add_parser(
        "synth", help="train models from scratch on synthetic tasks and score them", add_help=False
    )
    add_fields_help(command, fields)
    command.add_argument("recipe", help="a YAML file or the name of a packaged recipe of this kind")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES)
    command.add_argument("--report-only", action="store_true", help="train nothing; report the runs that are finished")
    command.set_defaults(run=synth)


def synth(options: argparse.Namespace) -> None:
    """Run a grid cell by cell and report it."""
    from mesa_eval.synthetic.report import report_grid
    from mesa_eval.synthetic.scores import score_model
    from mesalm.synthetic.grid import run_grid
    from mesalm.synthetic.recipe import load_synthetic_recipe
    from mesalm.synthetic.results import write_results

    recipe = load_synthetic_recipe(options.recipe, options.overrides)
    try:
        if not options.report_only:
            run_grid(recipe, score_model)
    finally:
        folder = write_results(recipe)
    print(f"report: {report_grid(folder)}")

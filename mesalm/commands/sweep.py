"""Sweep settings of a recipe."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from mesalm.commands.train import fields

__all__ = ["HELP", "arguments", "fields", "run"]

HELP = "train a recipe with several values of some settings and report the best by validation"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add a recipe, settings with their values, and arms."""
    command.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=a,b",
        help="settings with the values to try, such as optim.learning_rate=1e-3,2e-3; key=value applies to all runs",
    )
    command.add_argument("--arm", action="append", metavar="NAME", help="sweep this arm only; may be repeated")


def run(options: argparse.Namespace) -> None:
    """Train every cell that has not finished, then print the table and the paths of table and figure."""
    from mesa_eval.measures.probe import make_probe
    from mesalm.train.planned import plan_line
    from mesalm.train.pretrain import pretrain
    from mesalm.train.sweep import plan_sweep, report_sweep, run_sweep

    plan = plan_sweep(options.recipe, options.overrides, options.arm)
    main = os.environ.get("RANK", "0") == "0"
    if main:
        print(f"to train: {plan_line([cell.recipe for cell in plan.cells])}", file=sys.stderr)
    measured = run_sweep(plan, partial(pretrain, evaluation=make_probe))
    if main:
        print(report_sweep(plan, measured), end="")
        print(f"report: {plan.files}.md and .svg")

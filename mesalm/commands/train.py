"""Train a recipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesalm.commands.words import add_recipe, count

if TYPE_CHECKING:
    from mesalm.train.recipe import Recipe

HELP = "train a recipe's model, or each of its arms"


def fields() -> str:
    """Return the description of every setting of a recipe."""
    from mesalm.train.recipe import help_text

    return help_text()


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm train`."""
    add_recipe(command)
    command.add_argument("--arm", action="append", metavar="NAME", help="train this arm only; may be repeated")
    command.add_argument(
        "--seeds", metavar="N", help="train with several seeds as <name>-<arm>-s<seed>: 0,1,2 or a number of seeds"
    )
    command.add_argument(
        "--branch",
        metavar="RUN/step-N",
        help="start a new run from this checkpoint of a wsd run, and decay the rate over schedule.decay_steps",
    )
    command.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="resume from this run's newest checkpoint: auto (if there is one), must, or never (renames the old run)",
    )
    plan = command.add_argument_group("plan", "estimate what the runs need, without training")
    plan.add_argument("--plan", action="store_true", help="only print memory, operations and time of every run")
    plan.add_argument("--probe", action="store_true", help="measure the speed here if no earlier run gives it")
    plan.add_argument("--hardware", metavar="NAME", help="calculate for this GPU: H100, H200, A100 or 4090")
    plan.add_argument("--gpus", type=count, metavar="N", help="number of these GPUs (default 1)")
    plan.add_argument("--fsdp", action="store_true", help="shard weights and optimiser (FSDP2) instead of DDP")
    plan.add_argument(
        "--assume", action="append", default=[], metavar="key=value", help="change an assumption, such as maps=0.5"
    )


def run(options: argparse.Namespace) -> None:
    """Train every arm of a recipe in turn, with every seed."""
    from mesa_eval.measures.probe import make_probe
    from mesalm.hub.upload import make_uploads
    from mesalm.train.guard import NonFiniteError
    from mesalm.train.planned import branch, plan_line, planned_runs, read_seeds
    from mesalm.train.pretrain import pretrain

    seeds = None if options.seeds is None else read_seeds(options.seeds)
    failed = []
    runs = planned_runs(options.recipe, options.overrides, options.arm, seeds)
    if options.branch is not None:
        runs = [branch(recipe, options.branch) for recipe in runs]
    if options.plan:
        show_plans(runs, options)
        return
    for name in ("probe", "hardware", "gpus", "fsdp", "assume"):
        if getattr(options, name):
            raise ValueError(f"--{name}: belongs to --plan; add --plan, or leave it out")
    main = os.environ.get("RANK", "0") == "0"
    if main:
        print(f"to train: {plan_line(runs)}", file=sys.stderr)
    for recipe in runs:
        try:
            run = pretrain(recipe, resume=options.resume, evaluation=make_probe, uploading=make_uploads)
            if main:
                print(f"trained: {run}")
        except NonFiniteError as error:
            failed.append(f"{recipe.name}: {error}")  # go on with the other runs
    if failed:
        raise NonFiniteError("; ".join(failed))


def show_plans(runs: Sequence[Recipe], options: argparse.Namespace) -> None:
    """Print what each run will need."""
    from mesalm.train.plan import plan_recipe
    from mesalm.train.speeds import read_assumptions

    if (options.gpus or options.fsdp) and not options.hardware:
        raise ValueError("--hardware: is missing; name the card, such as --hardware H100")
    assumptions = read_assumptions(options.assume)
    for recipe in runs:
        plan = plan_recipe(
            recipe,
            assumptions,
            cards=options.gpus or 1,
            hardware=options.hardware,
            sharded=options.fsdp,
            probe=options.probe,
        )
        print("\n".join(plan.lines()))

"""Compare models."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.evaluate import ASKED, asked, evaluation_arguments, print_plan
from mesalm.commands.words import refuse_beside

HELP = "measure models on the same items and report the differences"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm compare`."""
    evaluation_arguments(command, models="*")
    command.add_argument(
        "--baseline",
        metavar="MODEL",
        help="the model to compare the others with (default: the last, or that of the report in --from-scores)",
    )
    command.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=MODEL,...",
        help="models that form one arm, trained with several seeds; runs of one recipe are grouped automatically",
    )
    command.add_argument(
        "--from-scores",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="make the report from a report folder or score file, without running a model; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Measure models on the same items, or read their scores, print the differences and write the report."""
    from mesa_eval.evaluate import compare as compare_models
    from mesa_eval.evaluate import earlier_choice, named_models, read_scores, report

    if options.from_scores and options.models:
        raise ValueError("give either models or --from-scores, not both")
    if options.from_scores:
        refuse_beside(options, "--from-scores", "plan", *ASKED)
        scores = read_scores(options.from_scores)
        folder = options.out or options.from_scores[0]
        if not options.out and (len(options.from_scores) > 1 or not folder.is_dir()):
            raise ValueError("--from-scores: needs a folder to write to; add --out FOLDER")
        baseline, arms = options.baseline, options.arm
        if len(options.from_scores) == 1 and baseline is None and not arms:
            baseline, arms = earlier_choice(options.from_scores[0])
        report(scores, folder, baseline=baseline, arms=arms)
        return
    if options.plan:
        print_plan(options, named_models(options.models, options.arm))
        return
    compare_models(options.models, **asked(options), out=options.out, baseline=options.baseline, arms=options.arm)

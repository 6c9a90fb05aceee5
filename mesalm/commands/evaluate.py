"""Measure models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesalm.commands.words import MODEL, add_device, add_texts, chosen, count, folder_to_write, seed

HELP = "measure models: perplexity, loss by position, copying, few-shot tasks"


def evaluation_arguments(command: argparse.ArgumentParser, models: str = "+") -> None:
    """Add the arguments that `mesalm eval` and `mesalm compare` share."""
    command.add_argument("models", nargs=models, default=[], metavar="MODEL", help=MODEL)
    command.add_argument(
        "--suite",
        default="quick",
        metavar="SUITE",
        help="how much to measure: quick, full or paper, or a version of one such as full-1 (default quick)",
    )
    add_texts(command)
    command.add_argument(
        "--split", choices=("valid", "test"), default="valid", help="split of a run's own text (default valid)"
    )
    command.add_argument(
        "--task",
        action="append",
        default=[],
        dest="tasks",
        metavar="TASK",
        help="built-in name, file, folder or hub:NAME; may be repeated",
    )
    command.add_argument(
        "--plan",
        action="store_true",
        help="only print the tokens, seconds and memory that each measure will need, by running a few batches",
    )
    command.add_argument("--out", type=folder_to_write, help="folder to write to")
    command.add_argument("--seed", type=seed, default=0, help="what items are drawn with (default 0)")
    command.add_argument("--batch-tokens", type=count, default=8192, help="tokens per forward pass (default 8192)")
    add_device(command)


ASKED = ("suite", "texts", "split", "tasks", "seed", "device", "batch_tokens", "trust_remote_code", "code")


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that say what to measure and how; see `mesa_eval.measures.plan.Request`."""
    return chosen(options, *ASKED)


def print_plan(options: argparse.Namespace, models: Sequence[str]) -> None:
    """Print what measuring the models will need."""
    from mesa_eval.measures.plan import Request, make_plan
    from mesa_eval.measures.token_count import count_tokens, print_counts

    plan = make_plan(Request(models=models, **asked(options)))
    print_counts(plan, count_tokens(plan, timed=True))


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm eval`."""
    evaluation_arguments(command)
    command.set_defaults(out=Path("reports/eval"))


def run(options: argparse.Namespace) -> None:
    """Measure each model and print a table."""
    if options.plan:
        print_plan(options, options.models)
        return
    from mesa_eval.evaluate import evaluate as evaluate_models

    evaluate_models(options.models, **asked(options), out=options.out)

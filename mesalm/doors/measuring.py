"""Measure models, and compare them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesalm.doors.words import MODEL, count, folder_to_write, seed


def _evaluation_arguments(door: argparse.ArgumentParser, models: str = "+") -> None:
    door.add_argument("models", nargs=models, default=[], metavar="MODEL", help=MODEL)
    door.add_argument(
        "--suite",
        default="quick",
        metavar="SUITE",
        help="how much to measure: quick, full or paper, or a version of one such as full-1 (default quick)",
    )
    door.add_argument("--text", action="append", default=[], metavar="FILE", help="held-out text; may be given again")
    door.add_argument("--split", choices=("valid", "test"), default="valid", help="of a run's own text (default valid)")
    door.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="built-in name, file, folder or hub:NAME; may be repeated",
    )
    door.add_argument(
        "--plan",
        action="store_true",
        help="print the tokens, seconds and memory that each measure will need, and stop; models read a few batches",
    )
    door.add_argument("--out", type=folder_to_write, help="folder to write to")
    door.add_argument("--seed", type=seed, default=0)
    door.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    door.add_argument("--batch-tokens", type=count, default=8192, help="tokens a forward pass (default 8192)")
    door.add_argument("--trust-remote-code", action="store_true", help="run code that lies with a model")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `evaluate_models` and `compare_models` are both asked beyond models and suite."""
    return {
        "texts": options.text,
        "split": options.split,
        "tasks": options.task,
        "out": options.out,
        "seed": options.seed,
        "device": options.device,
        "batch_tokens": options.batch_tokens,
        "trust_remote_code": options.trust_remote_code,
    }


def _print_plan(options: argparse.Namespace, models: Sequence[str]) -> None:
    from mesa_eval.measures.token_count import count_tokens, print_counts
    from mesa_eval.plan import make_plan

    chosen = options.suite, options.text, options.split, options.task, options.seed, options.trust_remote_code
    plan = make_plan(models, *chosen)
    print_counts(plan, count_tokens(plan, options.batch_tokens, options.trust_remote_code, device=options.device))


def eval_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm eval`."""
    door = doors.add_parser("eval", help="measure models: perplexity, loss by position, copying, few-shot tasks")
    _evaluation_arguments(door)
    door.set_defaults(door=evaluate, out=Path("reports/eval"))


def evaluate(options: argparse.Namespace) -> None:
    """Measure each model and print a table."""
    if options.plan:
        _print_plan(options, options.models)
        return
    from mesa_eval.evaluate import evaluate as evaluate_models

    evaluate_models(options.models, options.suite, **_asked(options))


def compare_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm compare`."""
    door = doors.add_parser("compare", help="measure models on the same items and report the differences")
    _evaluation_arguments(door, models="*")
    door.add_argument("--baseline", metavar="MODEL", help="what the others are compared with (default: the last)")
    door.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=MODEL,...",
        help="models that are one arm with several seeds; runs of one recipe are found by themselves",
    )
    door.add_argument(
        "--from-scores",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="make the report from a report folder or score file, without running a model; may be given again",
    )
    door.set_defaults(door=compare)


def compare(options: argparse.Namespace) -> None:
    """Measure models on the same items, or read their scores, print the differences and write the report."""
    from mesa_eval.evaluate import compare as compare_models
    from mesa_eval.evaluate import named_models, read_scores, report

    if options.plan:
        _print_plan(options, named_models(options.models, options.arm))
        return
    if options.from_scores and options.models:
        raise ValueError("models and --from-scores: give one of the two")
    if options.from_scores:
        scores = read_scores(options.from_scores)
        folder = options.out or options.from_scores[0]
        if not options.out and (len(options.from_scores) > 1 or not folder.is_dir()):
            raise ValueError("--from-scores: name the folder to write to with --out")
        report(scores, folder, baseline=options.baseline, arms=options.arm)
        return
    compare_models(options.models, options.suite, **_asked(options), baseline=options.baseline, arms=options.arm)

"""Publish a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.words import chosen, folder_to_write

HELP = "write a folder that any process with transformers can load"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm publish`."""
    command.add_argument("model", help="a run folder or a saved model's folder")
    command.add_argument("folder", type=folder_to_write, help="a new folder")
    command.add_argument("--licence", metavar="NAME", help="licence, by its name on the Hub, such as apache-2.0")
    command.add_argument(
        "--scores", type=Path, metavar="FILE", help="scores/NAME.json of `mesalm eval --out`, for the card"
    )
    command.add_argument("--push", metavar="OWNER/NAME", help="also upload the folder to the Hub")
    command.add_argument("--private", action="store_true", help="make the repository on the Hub private")


def run(options: argparse.Namespace) -> None:
    """Publish a model."""
    from mesa_eval.report.card_rows import card_rows
    from mesalm.hub.publish import publish

    if options.private and options.push is None:
        raise ValueError("--private: needs a repository on the Hub; add --push OWNER/NAME, or leave it out")
    evaluations = card_rows(options.scores, options.model) if options.scores else ()
    own = chosen(options, "model", "folder", "licence", "private")
    folder = publish(**own, evaluations=evaluations, push_to=options.push)
    print(f"published: {folder}" + (f" and {options.push}" if options.push else ""))

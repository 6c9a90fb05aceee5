"""Publish a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.words import folder_to_write


def add_publish(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm publish`."""
    command = commands.add_parser("publish", help="write a folder that any process with transformers can load")
    command.add_argument("model", help="a run folder or a saved model's folder")
    command.add_argument("folder", type=folder_to_write, help="a new folder")
    command.add_argument(
        "--licence", metavar="NAME", help="of the weights, in the Hub's words, for instance apache-2.0"
    )
    command.add_argument(
        "--scores", type=Path, metavar="FILE", help="scores/NAME.json of `mesalm eval --out`, for the card"
    )
    command.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the Hub as well")
    command.add_argument("--private", action="store_true", help="make the repository on the Hub private")
    command.set_defaults(run=publish)


def publish(options: argparse.Namespace) -> None:
    """Publish a model."""
    from mesa_eval.report.card_rows import card_rows
    from mesalm.hub.publish import publish as publish_model

    folder = publish_model(
        options.model,
        options.folder,
        licence=options.licence,
        evaluations=card_rows(options.scores) if options.scores else (),
        push_to=options.push,
        private=options.private,
    )
    print(f"published: {folder}" + (f" and {options.push}" if options.push else ""))

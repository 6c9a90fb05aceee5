"""Publish a model."""

from __future__ import annotations

import argparse
from pathlib import Path


def publish_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm publish`."""
    door = doors.add_parser("publish", help="write a folder that any process with transformers can load")
    door.add_argument("model", help="a run folder or a saved model's folder")
    door.add_argument("folder", type=Path, help="a new folder")
    door.set_defaults(door=publish)


def publish(options: argparse.Namespace) -> None:
    """Publish a model."""
    from mesalm.hub.publish import publish as publish_model

    print(f"published: {publish_model(options.model, options.folder)}")

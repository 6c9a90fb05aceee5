"""The folder of a run: the names of its files."""

from __future__ import annotations

import re
from pathlib import Path

STATE_FILE = "state.json"
"""The file of a checkpoint that is written last: without it there is no checkpoint."""


class RunFiles:
    """The files of one run by name, whether they are there or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"


def step_of(path: Path) -> int | None:
    """Return the step a checkpoint's folder is named after, None for another name."""
    match = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(match[1]) if match else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=lambda path: step_of(path) or 0)

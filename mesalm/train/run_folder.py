"""The folder of a run: what lies where, and whether a recipe may go on in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mesalm.settings import SettingsError
from mesalm.train.checkpoint import Checkpoints, step_of
from mesalm.train.recipe import Recipe
from mesalm.train.recipe_yaml import read_mapping

Resume = Literal["auto", "never", "must"]

HARMLESS = (
    "arms",
    "checkpoint",
    "data.cache_dir",
    "data.processes",
    "output_dir",
    "sample",
    "track",
    "train.compile",
    "train.device",
    "train.gradient_checkpointing",
    "train.log_every",
    "train.max_skipped",
    "train.micro_rows",
    "train.workers",
    "validate",
)
"""Settings and sections that may change between the lives of a run, for they do not change what it computes."""


@dataclass(frozen=True)
class Plan:
    """Say what is to be done in a run folder: nothing, begin, or go on from a checkpoint."""

    finished: bool = False
    resume_from: Path | None = None

    @property
    def step(self) -> int:
        """Return the number of steps already made."""
        return 0 if self.resume_from is None else step_of(self.resume_from) or 0


class RunFolder:
    """Name the files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"

    def enter(self, recipe: Recipe, resume: Resume = "auto") -> Plan:
        """Make the folder ready for this recipe and say how to go on. For the main process only.

        "auto" goes on where an earlier run stopped; "must" refuses to begin anew; "never" sets an earlier folder
        aside under the name ``<name>.old-1`` (2, 3, ...). Raises SettingsError when the folder holds a run of
        another recipe.
        """
        if resume not in ("auto", "never", "must"):
            raise SettingsError(f"resume: must be auto, never or must, not {resume!r}")
        if resume == "never" and self.path.exists():
            os.rename(self.path, self._aside())
        if not self.recipe.exists():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise SettingsError(f"{self.path}: is not empty and no run folder; change name or output_dir")
            if resume == "must":
                raise SettingsError(f"{self.path}: there is no run to resume; leave out --resume must to begin one")
            self._write_recipe(recipe)
            return Plan()
        if self.journal.exists():  # else it never began, and nothing is lost
            self._compare(recipe)
        if self.final.is_dir():
            return Plan(finished=True)
        self._write_recipe(recipe)
        newest = Checkpoints(self.checkpoints).newest()
        if newest is None and resume == "must":
            raise SettingsError(f"{self.checkpoints}: there is no complete checkpoint to resume")
        return Plan(resume_from=newest)

    def _aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        return aside

    def _write_recipe(self, recipe: Recipe) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.recipe.with_name("recipe.yaml.partial")
        partial.write_text(recipe.to_yaml(), encoding="utf-8")
        os.replace(partial, self.recipe)

    def _compare(self, recipe: Recipe) -> None:
        there = read_run_recipe(self.path)
        difference = first_difference(there.plain(), recipe.plain())
        if difference is not None:
            key, old, new = difference
            raise SettingsError(
                f"{self.path}: holds a run of another recipe, {key} is {old!r} there and {new!r} now; give this run "
                "another name, or start afresh with --resume never, which sets the old folder aside"
            )


def read_run_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run folder."""
    path = folder / "recipe.yaml"
    return Recipe.build(read_mapping(path), str(path))


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first dotted key in which two recipes differ so that they are different runs, and its values."""
    left, right = decisive(old), decisive(new)
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            return key, left.get(key), right.get(key)
    return None


def decisive(data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of plain data that decide what a run computes, by dotted key."""
    return {
        key: value
        for key, value in _flat(data)
        if not any(key == harmless or key.startswith(harmless + ".") for harmless in HARMLESS)
    }


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, key + ".")
        else:
            yield key, value

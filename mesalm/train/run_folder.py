"""The folder of a run: its files, the README that lists them, and whether a recipe may continue in it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from mesalm.files import expanded, file_hash, write_text
from mesalm.journal import read_journal
from mesalm.locks import locked
from mesalm.recipe_yaml import read_mapping
from mesalm.runs import RunFiles, complete_checkpoints, step_of
from mesalm.settings import SettingsError
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.recipe import Recipe
from mesalm.train.schedule import agreement, learning_rate_factor
from mesalm.wording import plural

Resume = Literal["auto", "never", "must"]

HARMLESS = (
    "arms",
    "checkpoint",
    "data.cache_dir",
    "data.prepared",
    "data.processes",
    "data.skip_bad",
    "evaluate",
    "output_dir",
    "parallelism",
    "sample",
    "track",
    "train.compile",
    "train.device",
    "train.gradient_checkpointing",
    "train.log_every",
    "train.logits_at_once",
    "train.max_skipped",
    "train.micro_rows",
    "train.spikes",
    "train.timeout",
    "train.workers",
    "upload",
    "validate",
)
"""Settings and sections that may change when a run is resumed, since they do not affect what it has computed."""

LENGTH = ("train.steps", "train.tokens")
"""Settings that may change too, but with a message."""


@dataclass(frozen=True)
class Resumption:
    """What to do in a run folder: nothing, start, or continue from a checkpoint.

    ``trained_on``: the `Prepared.contents` of the data so far, which must not change; ``note``: a message for the user;
    ``finished_at``: the last step of a finished run that is being extended, whose model is renamed.
    """

    finished: bool = False
    resume_from: Path | None = None
    trained_on: dict[str, Any] | None = None
    note: str = ""
    finished_at: int | None = None

    @property
    def step(self) -> int:
        """Return the step of the checkpoint to continue from, 0 without one."""
        return 0 if self.resume_from is None else step_of(self.resume_from) or 0


class RunFolder(RunFiles):
    """The folder of a run, with checks of whether a recipe may start or resume in it."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder while the block runs. Raises SettingsError if another process has locked it."""

        def busy(holder: str) -> None:
            raise SettingsError(
                f"{self.path}: {holder} is training this run; wait for it, end it, or give another name"
            )

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock"), busy):
            yield

    def enter(self, recipe: Recipe, resume: Resume = "auto") -> Resumption:
        """Create the folder if needed and decide how to start or resume in it. For the main process only.

        "auto" continues where an earlier run stopped; "must" raises an error if there is none; "never" renames an
        earlier folder to ``<name>.old-1`` (2, 3, ...). The length of a run may change, but not below the steps
        already made. Raises SettingsError if the folder holds a run of another recipe.
        """
        if resume not in ("auto", "never", "must"):
            raise SettingsError(f"resume: must be auto, never or must, not {resume!r}")
        if resume == "never" and self.path.exists():
            taken = (self.path.with_name(f"{self.path.name}.old-{number}") for number in count(1))
            os.rename(self.path, next(aside for aside in taken if not aside.exists()))
        if self.path.exists() and not self.path.is_dir():
            raise SettingsError(f"{self.path}: is a file; change name or output_dir")
        self._sweep()
        if not self.recipe.exists():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise SettingsError(f"{self.path}: is not empty and not a run folder; change name or output_dir")
            if resume == "must":
                raise SettingsError(f"{self.path}: there is no run to resume; leave out --resume must to start one")
            return self._enter_anew(recipe)
        newest = Checkpoints(self.checkpoints).newest()
        self._check_code(recipe, newest)
        if newest is None and resume == "must" and not self.final.is_dir():
            raise SettingsError(f"{self.checkpoints}: there is no complete checkpoint to resume from")
        if newest is None and not self.final.is_dir() and not self._has_steps():
            return self._enter_anew(recipe)  # nothing is lost
        return self._enter_again(recipe, newest)

    def _has_steps(self) -> bool:
        events = read_journal(self.journal) if self.journal.exists() else []
        return any(line["event"] == "step" for line in events)

    def _enter_anew(self, recipe: Recipe) -> Resumption:
        origin = _origin(recipe)
        write_text(self.recipe, recipe.to_yaml())
        return Resumption(resume_from=origin, trained_on=_trained_on(origin))

    def _enter_again(self, recipe: Recipe, newest: Path | None) -> Resumption:
        there = read_run_recipe(self.path)
        difference = first_difference(there.plain(), recipe.plain())
        if difference is not None:
            key, old, new = difference
            raise SettingsError(
                f"{self.path}: holds a run of another recipe, {key} is {old!r} there and {new!r} now; give this run "
                "another name, or start over with --resume never, which renames the old folder"
            )
        if self.final.is_dir() and there.steps == recipe.steps:
            if _places(there) == _places(recipe):
                return Resumption(finished=True)
            if newest is None:
                raise SettingsError(
                    f"{self.path}: is finished, its data came from another place, and there is no checkpoint to "
                    "compare them by; give this run another name"
                )
            return Resumption(finished=True, trained_on=_trained_on(newest))
        note = self._longer(there, recipe, newest) if there.steps != recipe.steps else ""
        finished_at = there.steps if self.final.is_dir() else None  # its last checkpoint may have been deleted
        start = newest or _origin(recipe)
        return Resumption(resume_from=start, trained_on=_trained_on(start), note=note, finished_at=finished_at)

    def _check_code(self, recipe: Recipe, newest: Path | None) -> None:
        if newest is None:
            return
        trained_by = Checkpoints(self.checkpoints).read_numbers(newest).get("code")
        for file, digest in code_digests(recipe).items():
            if trained_by is not None and digest not in trained_by.values():
                raise SettingsError(
                    f"{self.path}: was trained with other code, {file} has changed; restore the file, give this run "
                    "another name, or start over with --resume never, which renames the old folder"
                )

    def go_on(self, recipe: Recipe, plan: Resumption) -> None:
        """Write ``recipe`` into the folder, after all checks have passed. For the main process only."""
        if plan.finished_at is not None:
            for model in (self.final_average, self.final):
                aside = self.path / f"{model.name}-{plan.finished_at}"
                if model.is_dir() and aside.exists():
                    shutil.rmtree(aside)
                if model.is_dir():
                    os.rename(model, aside)
        write_text(self.recipe, recipe.to_yaml())

    def _sweep(self) -> None:
        """Delete leftovers of killed processes next to the checkpoints."""
        for pattern in ("recipe.yaml.partial", ".recipe.yaml.????????", ".*.md.????????"):
            for leftover in self.path.glob(pattern):
                leftover.unlink()
        for pattern in ("final*.partial", "final*.replaced", "upload.partial"):
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover)

    def _longer(self, old: Recipe, new: Recipe, newest: Path | None) -> str:
        """Return a message on a run whose length changes. Raises SettingsError if the new length is impossible."""
        reached = 0 if newest is None else step_of(newest) or 0
        key = LENGTH[0] if new.train.steps is not None else LENGTH[1]
        if self.final.is_dir() and newest is None:
            raise SettingsError(
                f"{key}: {self.path} is finished and has no checkpoint to resume from; give another name with "
                f"init_from={self.path}, or start over with --resume never"
            )
        if new.steps < reached:
            raise SettingsError(
                f"{key}: {plural(new.steps, 'step is', 'steps are')} fewer than the {reached} that {self.path} has "
                "made; give at least that, another name, or --resume never, which renames the old folder"
            )
        if reached == 0:
            return ""
        said = f"{plural(new.steps, 'step')} instead of {old.steps:,}"
        if self.final.is_dir():
            said += f", the model finished at step {old.steps} is now in final-{old.steps}"
        if agreement(new.schedule, old.steps, new.steps) >= reached:
            return f"{said}; so far the learning rate was that of a run of {new.steps} steps"
        if new.steps == reached:
            return said
        before = learning_rate_factor(new.schedule, reached - 1, old.steps) * new.optim.learning_rate
        after = learning_rate_factor(new.schedule, reached, new.steps) * new.optim.learning_rate
        return (
            f"{said}; the learning rate goes from {before:.3g} at step {reached} to {after:.3g}, because "
            f"{new.schedule.name} now spans {new.steps} steps, so a new run of that length would differ"
        )


def _origin(recipe: Recipe) -> Path | None:
    """Return the checkpoint of another run from which this run starts, None without one."""
    if recipe.branch_from is None:
        return None
    origin = Path(recipe.branch_from)
    if origin not in (there := complete_checkpoints(origin.parent)):
        names = ", ".join(path.name for path in there) or "none"
        raise SettingsError(f"branch_from: there is no checkpoint {origin}; choose from {names}")
    return origin


def _trained_on(checkpoint: Path | None) -> dict[str, Any] | None:
    return None if checkpoint is None else Checkpoints(checkpoint.parent).read_numbers(checkpoint)["data"]


def code_digests(recipe: Recipe) -> dict[str, str]:
    """Return the digest of each of the recipe's own Python files."""
    return {file: file_hash(expanded(file)) for file in recipe.code}


def read_run_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run folder."""
    path = RunFiles(folder).recipe
    return Recipe.build(read_mapping(path), str(path))


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first dotted key, with its values, whose difference makes two recipes different runs.

    Paths of data and tokenizer are not compared: their contents are compared with those that a checkpoint records.
    """
    left, right = _placeless(decisive(old)), _placeless(decisive(new))
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            return key, left.get(key), right.get(key)
    return None


def decisive(data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted key, that affect what a run computes."""
    return {
        key: value
        for key, value in _flat(data)
        if not any(key == harmless or key.startswith(harmless + ".") for harmless in HARMLESS)
    }


def _places(recipe: Recipe) -> Any:
    return (
        recipe.data.prepared,
        recipe.data.tokenizer,
        [(source.files, source.dataset) for source in recipe.data.sources],
    )


def _placeless(settings: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in settings.items() if key not in LENGTH}
    for number, source in enumerate(found.pop("data.sources", [])):
        found |= {f"data.sources.{number}.{key}": source[key] for key in source.keys() - {"files", "dataset"}}
    if found.get("data.tokenizer") not in ("train", "none"):
        found["data.tokenizer"] = "given"
    return found


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, key + ".")
        else:
            yield key, value


PAGE = "README.md"

TEXT = """# {name}

A training run of mesalm: {steps}, {tokens}. `journal.jsonl` shows its progress.

| file | what it is |
|---|---|
| `recipe.yaml` | all settings of the run |
| `journal.jsonl` | what happened, one JSON object per line: steps, validations, samples, alarms, checkpoints, the end |
| `corpus.md` | the data: sources, licences, counts, what was dropped |
| `checkpoints/step-N/` | weights, optimiser, random state and data position after step N; the newest {keep} are kept |
| `final/` | the trained model and its tokenizer; there when the run is finished |

Resume it, or report that it is finished:

    mesalm train {folder}/recipe.yaml

Draw its curves, sample from it, evaluate it:

    mesalm plot {folder} --out {name}.svg
    mesalm sample {folder} --prompt "Once"
    mesalm eval {folder} --suite quick --out {name}-measured

Write a folder for the Hub, and upload it:

    mesalm publish {folder} {name}-published --scores {name}-measured/scores/{name}.json
    mesalm publish {folder} {name}-uploaded --push OWNER/{name}

Run these commands in the folder where training was started.
"""


def run_page(recipe: Recipe, folder: Path) -> str:
    """Return the README of a run folder, in Markdown."""
    return TEXT.format(
        name=recipe.name,
        steps=plural(recipe.steps, "step"),
        tokens=plural(recipe.planned_tokens, "token"),
        keep=recipe.checkpoint.keep,
        folder=shlex.quote(str(folder)),
    )

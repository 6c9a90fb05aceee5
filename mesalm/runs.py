"""The folder of a run, its files and their contents, and the resolution of a MODEL argument."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mesalm.files import expanded
from mesalm.journal import read_journal
from mesalm.recipe_yaml import read_mapping

STATE_FILE = "state.json"
"""The file that completes a checkpoint: it is written last."""


class RunFiles:
    """The paths of the files of a run, which may not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.final_average = path / "final-average"


class RunRecord(RunFiles):
    """The records of a run, read when needed."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the recipe as plain data, empty where there is none. Raises ValueError for what is no recipe."""
        if not self.recipe.is_file():
            return {}
        try:
            settings = read_mapping(self.recipe)
            int(settings.get("data", {}).get("sequence_length") or 0)
        except (ValueError, AttributeError, TypeError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.recipe}: was not written by `mesalm train` ({said})") from None
        return settings

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Return the journal's events; see `read_journal`."""
        return read_journal(self.journal)

    @property
    def start(self) -> dict[str, Any]:
        """Return the last ``start`` event, empty where there is none."""
        return next((event for event in reversed(self.events) if event["event"] == "start"), {})

    @property
    def prepared(self) -> Path | None:
        """Return the folder of the prepared data, None where the run names none."""
        prepared = self.start.get("prepared")
        return Path(prepared) if prepared else None

    @property
    def sequence_length(self) -> int | None:
        """Return the tokens of a row, None where the recipe does not say."""
        return int(self.settings.get("data", {}).get("sequence_length") or 0) or None


@dataclass(frozen=True)
class Model:
    """What a MODEL argument names: a folder or Hub name for `from_pretrained`, and the run it belongs to."""

    argument: str
    name: str
    load_from: str
    run: RunRecord | None = None

    @property
    def finished_run(self) -> RunRecord | None:
        """Return the run whose final model this is; None for a checkpoint or any other model."""
        if self.run is None or Path(self.load_from).resolve() != self.run.final:
            return None
        return self.run


def resolve(model: str, *, unfinished: bool = False) -> Model:
    """Find what MODEL names: a run folder (which stands for its ``final``), a folder with a config.json, or a Hub name.

    With ``unfinished``, a run folder without ``final`` stands for its newest checkpoint.

    Raises ValueError, one line, for a run that has not finished, a folder without a model, or a name that is neither.
    """
    place = _place(model, unfinished)
    folder = Path(place)
    if not folder.is_dir():
        return Model(model, model.replace("/", "--"), place)
    folder = folder.resolve()
    name, home = folder.name, folder.parent
    if folder.name == "final":
        name = home.name
    elif home.name == "checkpoints":
        home = home.parent
        name = f"{home.name}-{folder.name}"
    elif folder.name.startswith("final-") and RunFiles(home).journal.is_file():
        name = f"{home.name}-{folder.name}"
    return Model(model, name, place, RunRecord(home) if RunFiles(home).journal.is_file() else None)


def _place(model: str, unfinished: bool) -> str:
    if not model.strip():
        raise ValueError("an empty model name was given; give a run folder, a saved model's folder or a Hub name")
    folder = expanded(model)
    files = RunFiles(folder)
    if folder.is_file():
        raise ValueError(f"{model} is a file; give a run folder, a saved model's folder or a Hub name")
    if (folder / "config.json").is_file():
        return str(folder)
    if files.final.is_dir():
        return str(files.final)
    if unfinished and folder.is_dir():
        complete = complete_checkpoints(files.checkpoints)
        if complete:
            return str(complete[-1])
        raise ValueError(f"{model} contains no model: neither final nor a complete checkpoint nor config.json")
    if files.journal.is_file():
        raise ValueError(f"{model}: this run has no final/ yet; finish it with `mesalm train` on the same recipe")
    if folder.is_dir():
        raise ValueError(f"{model}: no config.json here; give a run folder, a saved model's folder or a Hub name")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(f"{model}: there is no such folder")
    return model


def step_of(path: Path) -> int | None:
    """Return the step a checkpoint's folder is named after, None for another name."""
    match = re.fullmatch(r"step-(\d{8,})", path.name)
    return int(match[1]) if match else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=lambda path: step_of(path) or 0)

"""Find what a MODEL argument names: a training run, a model folder, or a name on the Hub.

Nothing is loaded here; `scoring.py` is the only file that runs a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mesalm.hub.open_model import locate
from mesalm.journal import read_journal


@dataclass(frozen=True)
class ModelSource:
    """Say where a model lies and what its run recorded about it."""

    argument: str
    name: str
    load_from: str
    run: Path | None = None
    sequence_length: int | None = None
    tokens_trained: int | None = None
    prepared: Path | None = None
    training: dict[str, list[list[float]]] = field(default_factory=dict)


def find_model(argument: str) -> ModelSource:
    """Resolve a MODEL argument: a run folder stands for its `final/`, never silently for a checkpoint.

    Raises ValueError in one line for a missing folder, a run that is not finished, or a folder that holds
    no model (see `mesalm.hub.open_model.locate`).
    """
    if not argument:
        raise ValueError("an empty model name was given; give a run folder, a model folder or a Hub name")
    place = locate(argument)
    folder = Path(place)
    if not folder.is_dir():
        return ModelSource(argument, argument.replace("/", "--"), place)
    folder = folder.resolve()
    if folder.name == "final" and (folder.parent / "journal.jsonl").is_file():
        return _finished_run(argument, folder)
    return ModelSource(argument, folder.name, str(folder))


def _finished_run(argument: str, final: Path) -> ModelSource:
    run = final.parent
    recipe = _read_recipe(run / "recipe.yaml")
    events = read_journal(run / "journal.jsonl")
    starts = [event for event in events if event.get("event") == "start"]
    ends = [event for event in events if event.get("event") in ("step", "end") and "tokens" in event]
    length = recipe.get("data", {}).get("sequence_length")
    prepared = starts[-1].get("prepared") if starts else None
    return ModelSource(
        argument,
        run.name,
        str(final),
        run=run,
        sequence_length=int(length) if length else None,
        tokens_trained=max((int(event["tokens"]) for event in ends), default=None),
        prepared=Path(prepared) if prepared else None,
        training=training_curve(events),
    )


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def training_curve(events: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Return `{"loss": [[tokens, nats a token]...], "valid": [[tokens, bits per byte]...]}` of a journal."""
    curve: dict[str, list[list[float]]] = {"loss": [], "valid": []}
    for event in events:
        tokens = event.get("tokens")
        if tokens is None:
            continue
        if event.get("event") == "step" and event.get("loss") is not None:
            curve["loss"].append([float(tokens), float(event["loss"])])
        if event.get("event") == "valid" and event.get("bits_per_byte") is not None:
            curve["valid"].append([float(tokens), float(event["bits_per_byte"])])
    return {key: points for key, points in curve.items() if points}

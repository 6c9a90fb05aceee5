"""Raw scores of one model: every number that a comparison resamples, written and read as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass
class ModelCard:
    """Say what was measured: where it lies, what it weighs, how long it was trained."""

    name: str
    argument: str
    architecture: str
    mixers: str
    parameters: int
    fingerprint: str
    tokenizer: str
    vocab_size: int
    max_length: int
    start_token: int | None
    tokens_trained: int | None = None
    state_numbers: int | None = None
    state_grows: bool | None = None
    training: dict[str, list[list[float]]] = field(default_factory=dict)


@dataclass
class DocumentScore:
    """Hold one document's size and its negative log-likelihood in nats."""

    identifier: str
    domain: str
    bytes: int
    tokens: int
    nats: float


@dataclass
class PositionScores:
    """Hold loss by position: mean nats of each window in each bin of positions.

    `bins` are (first, last) positions, both included; position p has p tokens before it. `units[w]` is the
    document of window w; `early` and `late` are the window's means over the positions of the in-context score.
    """

    window: int
    bins: list[list[int]]
    units: list[str]
    nats: list[list[float]]
    score_name: str
    early_range: list[int]
    late_range: list[int]
    early: list[float]
    late: list[float]


@dataclass
class CopyScores:
    """Hold, for each window of a random sequence shown twice, the mean nats of both halves and the accuracy
    of the second."""

    length: int
    first: list[float]
    second: list[float]
    accuracy: list[float]
    chance: float


@dataclass
class ShotScores:
    """Hold one number of shots: arrays [query][draw]; `right` and `chance` cover the first draws only where
    ranking was done on fewer draws."""

    shots: int
    nats: list[list[float]]
    bytes: list[int]
    exact: list[list[float]]
    right: list[list[float]]
    chance: float


@dataclass
class TaskScores:
    """Hold one few-shot task; `cut` are the numbers of shots left out because a prompt would not fit.

    `example` is one prompt with its answer, for a reader.
    """

    task: str
    kind: str
    fingerprint: str
    queries: int
    draws: int
    candidates: int
    majority: float | None
    shots: list[ShotScores]
    cut: list[int]
    pairs_joint: int
    pairs_apart: int
    example: str
    notes: list[str] = field(default_factory=list)


@dataclass
class Scores:
    """Hold everything measured of one model under one protocol."""

    model: ModelCard
    protocol: dict[str, Any]
    text_fingerprint: str
    window: int
    documents: list[DocumentScore]
    positions: PositionScores | None
    copy: CopyScores | None
    tasks: list[TaskScores]
    tokens_run: int
    seconds: float
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """Rebuild scores from `to_dict`; ValueError if they are of another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"scores of format {data.get('format')!r} cannot be read; this version reads {FORMAT}")
        result = _rebuild(cls, data)
        assert isinstance(result, cls)
        return result

    def write(self, folder: Path) -> Path:
        """Write `<folder>/<model>.json` atomically and return its path."""
        path = folder / f"{self.model.name}.json"
        write_atomically(path, json.dumps(self.to_dict(), allow_nan=False))
        return path

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read scores written by `write`."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def write_atomically(path: Path, text: str) -> None:
    """Write text to a file so that a reader sees the old content or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _rebuild(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {item.name: _rebuild(hints[item.name], value[item.name]) for item in dataclasses.fields(kind)}
        return kind(**known)
    if origin is list:
        (inner,) = typing.get_args(kind)
        return [_rebuild(inner, item) for item in value]
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return _rebuild(inner, value)
    return value

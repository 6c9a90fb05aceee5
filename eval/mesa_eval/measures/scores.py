"""Scores of one model: measures that a comparison resamples and the raw numbers behind them, as JSON.

Every statistic is one record, `Measure`: a mean over columns of sum(numerator) / sum(denominator), both summed over
the units that are resampled. A mean has denominators 1; bits per byte divide bits by bytes; macro-F1 has one column per
class, 2 TP over 2 TP + FP + FN; a perplexity is the exponential of nats by tokens.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mesalm.files import write_text

FORMAT = 4
T = TypeVar("T")


@dataclass
class ModelCard:
    """The model that was measured: where it is, its weights, how long it was trained.

    seed, recipe: the training seed, and a sha256 shared by runs with the same recipe and data otherwise;
    seconds_trained: of the run's journal, on whatever machine it ran.
    """

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
    seed: int | None = None
    recipe: str = ""
    seconds_trained: float | None = None


@dataclass(kw_only=True)
class Statistic:
    """What a number is, field by field, and how it is shown; two models share a statistic that has the same key.

    section: "primary", "text", "position", "length", "context", "recall" or "task/NAME"; task: NAME; metric: what is
    measured, such as "accuracy"; variant: another way of asking or of cutting the text; group: the part that is looked
    at (a domain, a file, a paradigm, a kind of token); shots: of a task, `most` where they are as many as fit; first,
    last: positions counted, both ends included; key: the name that all of these make.

    label, unit: what a reader sees beside the value; better: "lower", "higher" or ""; digits: decimals shown;
    resampled: what one unit is ("document", "window", "query", "episode", "sequence"); x: shots or position, for
    figures; primary: whether it enters the one average declared beforehand; ceiling: the score of a predictor that
    knows what kind of rule the answers follow.
    """

    section: str
    task: str = ""
    metric: str
    variant: str = ""
    group: str = ""
    shots: int | None = None
    most: bool = False
    first: int | None = None
    last: int | None = None
    key: str = field(init=False)
    label: str
    unit: str
    better: str
    digits: int
    resampled: str
    x: float | None = None
    primary: bool = False
    ceiling: float | None = None

    def __post_init__(self) -> None:
        self.key = key_of(self)

    def statistic(self) -> dict[str, Any]:
        """Return the fields of `Statistic` alone, from which another record of it is made."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(Statistic) if item.init}


def key_of(found: Statistic) -> str:
    """Return the name of a statistic among all of a model, made of its fields and nothing else."""
    group = [found.group] if found.group else []
    metric = [found.metric] if found.metric != "loss" else []
    bounds = dict.fromkeys(str(bound) for bound in (found.first, found.last) if bound is not None)
    positions = ["-".join(bounds)] if bounds else []
    if found.task:
        shots = [] if found.shots is None else ["most" if found.most else str(found.shots)]
        name = f"{found.metric}-{found.variant}" if found.variant else found.metric
        words = [found.section, *shots, name, *group]
    elif found.section == "recall" or not metric:
        words = [found.section, *group, *positions, *metric]
    else:
        words = [*metric, *([found.variant] if found.variant else []), *group, *positions]
    return "/".join(words)


@dataclass(kw_only=True)
class Measure(Statistic):
    """One statistic of one model, unit by unit.

    units [U]: their names, equal and in the same order for models that can be paired; numerator, denominator [U][C];
    transform: "exp" or ""; any_tokenizer: whether models with different tokenizers or windows compare; chance: the
    null, the score of a model that reads nothing; items: sha256 of what was asked.
    """

    units: list[str]
    numerator: list[list[float]]
    denominator: list[list[float]]
    transform: str = ""
    any_tokenizer: bool = False
    chance: float | None = None
    items: str = ""


@dataclass(frozen=True)
class Note:
    """What a reader must know of a measurement; own: it may be true of the one model alone, which is then named."""

    text: str
    own: bool = False


@dataclass
class TaskRecord:
    """How one few-shot task was asked: sizes, one prompt with its answer, and what was left out.

    cut: numbers of shots left out because a prompt would not fit or the items run out; skipped: why the task could
    not run at all, else ""; majority: share of the commonest label; pairs_joint, pairs_apart: see
    `Encoder.encode_pairs`.
    """

    name: str
    kind: str
    queries: int = 0
    draws: int = 0
    candidates: int = 0
    majority: float | None = None
    cut: list[int] = field(default_factory=list)
    pairs_joint: int = 0
    pairs_apart: int = 0
    example: str = ""
    skipped: str = ""


@dataclass
class Part:
    """Everything that came of one thing asked: measures, raw numbers, and what it cost.

    name: "text", "positions", "length", "copying" or "task/NAME"; key: sha256 over the model, the items and how they
    were asked, so that a stored part is used again only where nothing differs.
    """

    name: str = ""
    key: str = ""
    measures: list[Measure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    task: TaskRecord | None = None
    notes: list[Note] = field(default_factory=list)
    tokens_run: int = 0
    seconds: float = 0.0

    def to_json(self) -> str:
        """Return the part as JSON."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Rebuild a part from `to_json`; ValueError in one line for anything else."""
        return _rebuilt(cls, json.loads(text))


@dataclass
class Scores:
    """Everything measured of one model under one protocol."""

    model: ModelCard
    protocol: dict[str, Any]
    text_fingerprint: str
    text_bytes: int
    documents: int
    window: int
    parts: list[Part]
    versions: dict[str, str]
    notes: list[Note] = field(default_factory=list)
    format: int = FORMAT

    @property
    def measures(self) -> list[Measure]:
        """Return the measures of all parts in order."""
        return [measure for part in self.parts for measure in part.measures]

    @property
    def tasks(self) -> list[TaskRecord]:
        """Return the records of the few-shot tasks in order, those that could not run among them."""
        return [part.task for part in self.parts if part.task is not None]

    @property
    def tokens_run(self) -> int:
        """Return how many tokens the model read."""
        return sum(part.tokens_run for part in self.parts)

    @property
    def seconds(self) -> float:
        """Return how long the model ran."""
        return sum(part.seconds for part in self.parts)

    def part(self, name: str) -> Part | None:
        """Return the part of a name, or None."""
        return next((part for part in self.parts if part.name == name), None)

    def measure(self, key: str) -> Measure | None:
        """Return the measure of a key, or None."""
        return next((measure for measure in self.measures if measure.key == key), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """Rebuild scores from `to_dict`; ValueError in one line for anything else, and for those of another format."""
        given = data.get("format") if isinstance(data, dict) else None
        if given != FORMAT:
            raise ValueError(f"scores of format {given!r} cannot be read; this version reads {FORMAT}: measure again")
        return _rebuilt(cls, data)

    def write(self, folder: Path) -> Path:
        """Write `<folder>/<model>.json` atomically and return its path."""
        path = folder / f"{self.model.name}.json"
        write_text(path, json.dumps(self.to_dict(), allow_nan=False))
        return path

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read scores written by `write`."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _rebuilt(kind: type[T], data: Any) -> T:
    """Return the record of a dataclass that plain data holds; fields that older ones lack have their defaults."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None

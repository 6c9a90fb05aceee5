"""Scores of one model: measures that a comparison resamples and their raw numbers, as JSON.

Every statistic is one record, `Measure`: a mean over columns of sum(numerator) / sum(denominator), both summed over
the resampled units. A mean has denominators 1; bits per byte divide bits by bytes; macro-F1 has one column per class,
2 TP over 2 TP + FP + FN; a perplexity is the exponential of nats divided by tokens.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from mesalm.files import write_text

FORMAT = 4
PROTOCOL = ("name", "seed", "command", "text", "documents_available", "document_bytes")
"""Fields of a protocol that comparisons and reports need."""
SECTIONS = {
    "primary": "Primary average, declared beforehand",
    "text": "Text",
    "position": "Loss by position in the window",
    "length": "Loss past the window",
    "context": "Use of the context",
    "recall": "Recall on natural text",
}
"""Titles of all sections of rows except those of tasks."""
T = TypeVar("T")


@dataclass
class ModelCard:
    """The measured model: its location, weights and training.

    seed, recipe: the training seed, and a sha256 shared by runs that differ only in the seed; seconds_trained: from
    the run's journal, on whichever machine it ran.
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
    """Identity and display of a statistic; equal keys identify the same statistic of different models.

    section: "primary", "text", "position", "length", "context", "recall" or "task/NAME"; task: NAME; metric: what is
    measured, such as "accuracy"; variant: a variant of the task or of the text split; group: the subset measured (a
    domain, a file, a paradigm, a kind of token); shots: of a task, with `most` set if they are as many as fit; first,
    last: inclusive range of positions; key: the name formed from all of these.

    label, unit: text shown beside the value; better: "lower", "higher" or ""; digits: decimals shown; resampled: the
    kind of unit ("document", "window", "query", "episode", "sequence"); x: shots or position, for figures;
    primary: whether the predeclared average includes it; ceiling: the score of a predictor that knows the kind of rule
    behind the answers.
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
        """Return only the fields of `Statistic`, for making another record of the same statistic."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(Statistic) if item.init}


def key_of(found: Statistic) -> str:
    """Return the name of a statistic, unique within a model and formed from its fields alone."""
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
    """One statistic of one model, with its value for each unit.

    units [U]: their names, the same in the same order for models that can be paired; numerator, denominator [U][C];
    transform: "exp" or ""; any_tokenizer: whether models with different tokenizers or windows are comparable; chance:
    the null score, that of a model that ignores its input; items: sha256 of the test items.
    """

    units: list[str]
    numerator: list[list[float]]
    denominator: list[list[float]]
    transform: Literal["", "exp"] = ""
    any_tokenizer: bool = False
    chance: float | None = None
    items: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.section != f"task/{self.task}" and (self.task or self.section not in SECTIONS):
            raise ValueError(f"{self.key}: {self.section!r} is not a section of this version's reports")
        rows = [*self.numerator, *self.denominator]
        if not self.units or {len(self.numerator), len(self.denominator)} != {len(self.units)}:
            raise ValueError(f"{self.key} needs a numerator and a denominator for each of {len(self.units)} units")
        if len({len(row) for row in rows}) != 1 or not all(map(math.isfinite, chain.from_iterable(rows))):
            raise ValueError(f"{self.key} needs finite numbers, as many for each unit")
        if not any(map(any, self.denominator)):
            raise ValueError(f"{self.key} has no value: its denominators are all 0")


@dataclass(frozen=True)
class Note:
    """A remark on a measurement for readers; own: it may apply to this model only, which reports then name."""

    text: str
    own: bool = False


@dataclass
class TaskRecord:
    """How one few-shot task was asked: sizes, an example prompt with its answer, and omissions.

    cut: numbers of shots omitted because a prompt would not fit or there are too few items; skipped: why the task
    could not run at all, or ""; majority: share of the most common label.
    """

    name: str
    kind: str
    queries: int = 0
    draws: int = 0
    candidates: int = 0
    majority: float | None = None
    cut: list[int] = field(default_factory=list)
    example: str = ""
    skipped: str = ""


@dataclass
class Part:
    """The results of one part of an evaluation: measures, raw numbers, and cost.

    name: "text", "positions", "length", "copying" or "task/NAME"; key: sha256 over the model, the items and the way
    they were asked, so that a stored part is reused only if nothing differs.
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
        """Rebuild a part from `to_json`; raise a one-line ValueError for anything else."""
        return _rebuilt(cls, json.loads(text))


@dataclass
class Scores:
    """Everything measured of one model under one protocol.

    text_fingerprint: sha256 of the scored documents, which may be cut; collection_fingerprint: sha256 of all documents
    uncut, from which windows are taken, "" in scores stored without it.
    """

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
    collection_fingerprint: str = ""

    @property
    def measures(self) -> list[Measure]:
        """Return the measures of all parts in order."""
        return [measure for part in self.parts for measure in part.measures]

    @property
    def tasks(self) -> list[TaskRecord]:
        """Return the records of the few-shot tasks in order, including those that could not run."""
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
        """Return the part with this name, or None."""
        return next((part for part in self.parts if part.name == name), None)

    def measure(self, key: str) -> Measure | None:
        """Return the measure with this key, or None."""
        return next((measure for measure in self.measures if measure.key == key), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """Rebuild scores from `to_dict`; raise a one-line ValueError for other data or another format version."""
        given = data.get("format") if isinstance(data, dict) else None
        if given != FORMAT:
            raise ValueError(f"scores of format {given!r} cannot be read; this version reads {FORMAT}: measure again")
        found = _rebuilt(cls, data)
        missing = [name for name in PROTOCOL if name not in found.protocol]
        if missing:
            raise ValueError(f"protocol.{missing[0]}: Field required")
        return found

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
    """Rebuild a dataclass record from plain data; fields missing from older data get their defaults."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None

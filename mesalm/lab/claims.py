"""Claims and studies: criteria, sizes and experiments from claims.yaml and studies.yaml, and verdicts."""

from __future__ import annotations

import json
import math
import operator
import pkgutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from mesalm.settings import Settings, SettingsError, one_of

TABLE = Path(__file__).with_name("claims.yaml")
STUDIES = TABLE.with_name("studies.yaml")
Size = Literal["small", "paper"]
KEPT = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt, "below": operator.lt}
"""How a value meets each kind of bound: function(value, bound)."""


class Criterion(Settings):
    """Bounds on one quantity of an experiment: at_least and at_most include the bound, above and below do not."""

    quantity: str = Field(description="Name of the quantity in the findings.")
    at_least: float | None = Field(default=None, description="Smallest value allowed.")
    at_most: float | None = Field(default=None, description="Largest value allowed.")
    above: float | None = Field(default=None, description="Exclusive lower bound.")
    below: float | None = Field(default=None, description="Exclusive upper bound.")

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set, by name."""
        return {name: bound for name in KEPT if (bound := getattr(self, name)) is not None}

    def _check(self) -> None:
        if not self.bounds:
            raise ValueError(f"{self.quantity}: has no bound, so it always holds; give at_least or at_most")

    def holds(self, value: float) -> bool:
        """Return whether a value meets every bound; NaN and infinite values, as of a diverged net, meet none."""
        return math.isfinite(value) and all(KEPT[name](value, bound) for name, bound in self.bounds.items())

    def words(self) -> str:
        """Return the bounds in words."""
        return " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in self.bounds.items())


@dataclass
class Curve:
    """One curve of a figure: its label, x and y."""

    label: str
    x: list[float]
    y: list[float]


@dataclass
class Findings:
    """The findings of an experiment with one seed.

    ``values`` are the quantities of the criteria; ``controls`` are further numbers to print. ``curves`` are plotted
    with axes ``x_label`` and ``y_label``; ``blocks`` are matrices [rows, columns] by name, drawn as images and divided
    by lines into ``divisions`` parts per side.
    """

    values: dict[str, float]
    controls: dict[str, float] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    x_label: str = "position"
    y_label: str = "loss"
    logarithmic: bool = False
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)
    divisions: int = 4
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for part in (self.values, self.controls):
            part.update({name: float(value) for name, value in part.items()})  # also of a tensor with one element


def _experiment(value: Any) -> Any:
    """Return the function named by a string such as ``linear.one_layer``; anything else unchanged."""
    return pkgutil.resolve_name(f"mesalm.lab.experiments.{value}") if isinstance(value, str) else value


Experiment = Annotated[Callable[..., Findings], BeforeValidator(_experiment)]
"""Function(bench, sizes) -> findings of one seed; in YAML, its name within `mesalm.lab.experiments`."""


def _plain_data(value: Any) -> Any:
    """Return sizes as read back from JSON, tuples as lists. Raises ValueError for other types."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"must be numbers, text, lists and dictionaries ({error})") from None


Sizes = Annotated[dict[str, Any], BeforeValidator(_plain_data)]
"""Sizes by name, plain data."""


class PublishedCurve(Settings):
    """A curve from the paper's figure, and the sizes at which ours is comparable."""

    label: str = Field(description="What the curve shows.")
    x: list[float] = Field(description="The x values.")
    y: list[float] = Field(description="The y values.")
    where: dict[str, Any] = Field(default_factory=dict, description="Sizes that the experiment must have.")


class Claim(Settings):
    """One version of a claim: what is claimed and where, its criteria, and the sizes it is tested at."""

    number: int = Field(description="Number of the claim, shared by its versions.")
    version: int = Field(default=1, ge=1, description="Version of criteria and experiment; no weaker, or why says so.")
    why: str = Field(default="", description="What was wrong with the previous version.")
    claim: str = Field(description="The claim in one sentence.")
    experiment: Experiment = Field(description="The function that tests it.")
    source: str = Field(default="", description="Where the paper makes it.")
    published: dict[str, float] = Field(default_factory=dict, description="Quantity -> the paper's number.")
    published_curves: list[PublishedCurve] = Field(default_factory=list, description="Curves of the paper's figure.")
    criteria: list[Criterion] = Field(min_length=1, description="What must be met.")
    small: Sizes = Field(description="Sizes for 2 CPU cores.")
    paper: Sizes = Field(default_factory=dict, description="The paper's sizes.")

    def _check(self) -> None:
        for quantity in self.published:
            one_of(quantity, [criterion.quantity for criterion in self.criteria], "a quantity of the criteria")

    def sizes(self, size: Size) -> dict[str, Any]:
        """Return the sizes of one of the two scales."""
        return dict(self.small if size == "small" else self.paper)

    def curves_beside(self, size: Size) -> list[Curve]:
        """Return the published curves that are comparable at the sizes of a scale."""
        sizes = self.sizes(size)
        return [
            Curve(curve.label, curve.x, curve.y)
            for curve in self.published_curves
            if all(sizes.get(key) == value for key, value in curve.where.items())
        ]


class Study(Settings):
    """A measurement without criteria: its question, the claim whose sizes and nets it uses, and the experiment.

    A study that changes sizes has no paper size.
    """

    question: str = Field(description="The question.")
    sizes_of: str = Field(description="The claim whose sizes it uses.")
    experiment: Experiment | None = Field(default=None, description="The function that answers; none: the claim's.")
    changes: dict[str, Any] = Field(default_factory=dict, description="Small sizes that replace the claim's.")

    def sizes(self, claims: Mapping[str, Claim], size: Size) -> dict[str, Any]:
        """Return the sizes of a scale. Raises SettingsError for the paper's if the study changes sizes."""
        if self.changes and size == "paper":
            raise SettingsError(
                f"size: this study changes small sizes; `mesalm lab run {self.sizes_of} --size paper` has the paper's"
            )
        return {**claims[self.sizes_of].sizes(size), **self.changes}


@dataclass(frozen=True)
class Ruling:
    """Whether the mean over seeds meets one criterion, with the smallest and largest value."""

    criterion: Criterion
    mean: float
    least: float
    largest: float
    holds: bool


def load_claims(path: Path = TABLE) -> dict[str, Claim]:
    """Return the claims by name, ordered by number and version. Raises SettingsError if the file is invalid."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    claims = {name: Claim.build(entry, name) for name, entry in table.items()}
    return dict(sorted(claims.items(), key=lambda item: (item[1].number, item[1].version)))


def load_studies() -> dict[str, Study]:
    """Return the studies by name. Raises SettingsError if the file is invalid."""
    table = yaml.safe_load(STUDIES.read_text(encoding="utf-8"))
    return {name: Study.build(entry, name) for name, entry in table.items()}


def judge(claim: Claim, values: Sequence[Mapping[str, float]]) -> list[Ruling]:
    """Compare the mean over seeds of every quantity with its criterion; ``values`` has one entry per seed.

    Raises SettingsError if the experiment did not return a quantity.
    """
    rulings = []
    for criterion in claim.criteria:
        given = set.intersection(*map(set, values))
        if criterion.quantity not in given:
            there = ", ".join(sorted(given)) or "none"
            raise SettingsError(f"the experiment returned no quantity {criterion.quantity!r}, only {there}")
        found = [seed[criterion.quantity] for seed in values]
        mean = statistics.fmean(found)
        rulings.append(Ruling(criterion, mean, min(found), max(found), criterion.holds(mean)))
    return rulings

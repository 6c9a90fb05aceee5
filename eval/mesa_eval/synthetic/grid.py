"""A grid of models on synthetic tasks, read from its folder: every arm at every point, its seeds, and the guesses.

Statistics: rows are the units of one model. With several training seeds, intervals are over seeds instead: differences
have paired t intervals with seeds - 1 degrees of freedom, since 2 or 3 seeds are too few to resample.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesa_eval.synthetic.scores import score_guesses
from mesa_eval.uncertainty.bootstrap import Resampled, resample
from mesa_eval.uncertainty.intervals import Interval, paired_t
from mesalm.data.synthetic.tasks import TASKS, SyntheticTask
from mesalm.data.synthetic.token_task import TokenTask
from mesalm.files import write_text

GUESSES = 2
"""Version of the guesses; those that a grid's folder holds of another version are computed anew."""


@dataclass(frozen=True)
class SeedRun:
    """One trained model of a setting; ``scores`` is None if its training diverged."""

    seed: int
    steps: int | None
    scores: SyntheticScores | None


@dataclass(frozen=True)
class ReportedSetting:
    """One arm at one point of the grid, at its best learning rate."""

    arm: str
    point: dict[str, str]
    task: SyntheticTask
    score_seed: int
    best_rate: float | None
    rates: list[float]
    parameters: int | None
    state_numbers: int
    runs: list[SeedRun]

    def measured(self, key: str) -> dict[int, RowScores]:
        """Return one statistic for every seed that has it."""
        found = {run.seed: run.scores.measures for run in self.runs if run.scores is not None}
        return {seed: measure for seed, all_ in found.items() for measure in all_ if measure.key == key}


@dataclass(frozen=True)
class Grid:
    """A whole grid: arms in order, axes with their values in order, settings, and how many runs are missing."""

    name: str
    folder: Path
    arms: list[str]
    axes: dict[str, list[str]]
    seeds: list[int]
    missing: int
    settings: list[ReportedSetting]

    def points(self) -> list[dict[str, str]]:
        """Return the points of the grid in order."""
        return list({tuple(setting.point.items()): setting.point for setting in self.settings}.values())

    def at(self, point: dict[str, str]) -> list[ReportedSetting]:
        """Return the settings of one point, one per arm."""
        return [setting for setting in self.settings if setting.point == point]

    def measures(self) -> list[RowScores]:
        """Return one instance of every statistic that occurs, in order."""
        found = [run.scores for setting in self.settings for run in setting.runs if run.scores is not None]
        return list({measure.key: measure for scores in found for measure in scores.measures}.values())


@dataclass(frozen=True)
class Line:
    """One statistic of one arm at one point: its mean over seeds, each seed's value, and its uncertainty.

    ``spread`` is the range over seeds or, in a grid with one seed, the 95 % interval over rows. ``difference`` is
    relative to the first arm: by paired t over seeds or, in a grid with one seed, by bootstrap over rows. If only one
    of a grid's several seeds has scores, there is neither a spread nor an interval.
    """

    setting: ReportedSetting
    values: dict[int, float]
    spread: tuple[float, float] | None
    difference: Interval | None
    guesses: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def null(self) -> str | None:
        """Return the best guess of a task of answers, which a model has to exceed; None for other tasks."""
        return max(self.guesses, key=lambda name: self.guesses[name]) if "chance" in self.guesses else None


def read_grid(folder: Path) -> Grid:
    """Read a grid's folder; raise a one-line ValueError if it contains none."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{folder}: holds no results.json; run `mesalm synth` first")
    data = json.loads(path.read_text(encoding="utf-8"))
    return Grid(
        name=data["name"],
        folder=folder,
        arms=data["arms"],
        axes=data["axes"],
        seeds=data["seeds"],
        missing=data["missing"],
        settings=[_setting(folder, entry) for entry in data["settings"]],
    )


def lines(grid: Grid, key: str) -> list[Line]:
    """Return one statistic of every setting that has finished runs, in the order of the grid."""
    found = []
    for point in grid.points():
        settings = grid.at(point)
        base = settings[0].measured(key)
        for setting in settings:
            mine = setting.measured(key)
            if not mine:
                continue
            values = {seed: measure.value for seed, measure in mine.items()}
            several = len(grid.seeds) > 1
            difference = None if setting is settings[0] else _difference(mine, base, several)
            found.append(Line(setting, values, _spread(mine, several), difference, guess_values(grid, setting, key)))
    return found


def guess_values(grid: Grid, setting: ReportedSetting, key: str) -> dict[str, float]:
    """Return the values of all guesses without a model in one statistic, by name."""
    constant = setting.task.guesses() if isinstance(setting.task, TokenTask) else {}
    scored = {name: scores.value for name, scores in guesses(grid, setting, key).items()}
    return {**constant, **scored}


def guesses(grid: Grid, setting: ReportedSetting, key: str) -> dict[str, RowScores]:
    """Return the scores of guesses computed from the rows; they are computed once and cached in the grid's folder."""
    measure = next(iter(setting.measured(key).values()))
    task, rows = setting.task, len(measure.numerator)
    if measure.times > 1:
        if not isinstance(task, TokenTask) or not task.answers:
            return {}
        task, key = task.model_copy(update={"length": measure.times * task.length}), "accuracy"
    content = [GUESSES, task.model_dump(mode="json"), type(task).__name__, rows, setting.score_seed]
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    path = grid.folder / "guesses" / f"{name}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        scored = {guess: SyntheticScores.from_plain(plain) for guess, plain in stored.items()}
    else:
        scored = score_guesses(task, rows, seed=setting.score_seed)
        write_text(path, json.dumps({guess: scores.plain() for guess, scores in scored.items()}))
    return {guess: m for guess, scores in scored.items() for m in scores.measures if m.key == key}


def _setting(folder: Path, entry: dict[str, Any]) -> ReportedSetting:
    fields = dict(entry["task"])
    runs = [
        SeedRun(run["seed"], run["steps"], _scores(folder / "cells" / run["folder"] / "result.json"))
        for run in entry["runs"]
    ]
    return ReportedSetting(
        arm=entry["arm"],
        point=entry["point"],
        task=TASKS[fields.pop("name")].build(fields, "task"),
        score_seed=entry["score_seed"],
        best_rate=entry["best_rate"],
        rates=list(dict.fromkeys(run["rate"] for run in entry["swept"])),
        parameters=next((run["parameters"] for run in entry["runs"] if "parameters" in run), None),
        state_numbers=entry["state_numbers"],
        runs=runs,
    )


def _scores(path: Path) -> SyntheticScores | None:
    data = json.loads(path.read_text(encoding="utf-8"))
    return SyntheticScores.from_plain(data) if "measures" in data else None


def _spread(measured: dict[int, RowScores], several: bool) -> tuple[float, float] | None:
    """Return the range over seeds or, in a grid with one seed, the interval over rows; None if only one is left."""
    if several and len(measured) == 1:
        return None
    if several:
        values = [measure.value for measure in measured.values()]
        return min(values), max(values)
    (only,) = measured.values()
    interval = _resampled(only).interval()
    return None if interval.low is None or interval.high is None else (interval.low, interval.high)


def _difference(mine: dict[int, RowScores], base: dict[int, RowScores], several: bool) -> Interval | None:
    """Return the difference over the seeds of both, without an interval if only one of several seeds remains."""
    shared = [seed for seed in mine if seed in base]
    if not shared:
        return None
    if several:
        return paired_t([mine[seed].value for seed in shared], [base[seed].value for seed in shared])
    return (_resampled(mine[shared[0]]) - _resampled(base[shared[0]])).interval()


def _resampled(measure: RowScores) -> Resampled:
    return resample(np.asarray(measure.numerator), np.asarray(measure.denominator))

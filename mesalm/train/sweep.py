"""A sweep: one run for each combination of values of some settings, and which combination validates best."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesalm.draw import draw_svg_file, plain_ticks, series_colour, series_marker
from mesalm.files import write_text
from mesalm.recipe_yaml import read_yaml
from mesalm.runs import RunRecord
from mesalm.settings import SettingsError
from mesalm.train.guard import NonFiniteError
from mesalm.train.overrides import NO_VALUE
from mesalm.train.planned import planned_runs
from mesalm.train.recipe import Recipe, load_recipe

UNITS = {
    "loss": ("validation loss", "validation loss, nats per token"),
    "bits_per_byte": ("validation bits per byte", "validation, bits per byte"),
}
"""What runs are compared by: field of the journal's valid lines -> its words in the table and in the figure."""


@dataclass(frozen=True)
class SweptCell:
    """One run of a sweep: its recipe, the run it varies, and the value of each swept setting."""

    recipe: Recipe
    arm: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """The settings that are swept, each with its values, and a cell for each combination and arm."""

    name_or_path: str
    overrides: tuple[str, ...]
    axes: dict[str, list[Any]]
    cells: list[SweptCell]

    @property
    def files(self) -> Path:
        """Return the path of table and figure, without suffix: beside the runs, named after the swept settings."""
        base = load_recipe(self.name_or_path, self.overrides)
        return base.folder.with_name("-".join([base.name, "sweep", *self.axes]))


def plan_sweep(name_or_path: str, words: Sequence[str], arms: Sequence[str] | None = None) -> Sweep:
    """Plan a run for each combination of the values in ``words``, ``dotted.key=a,b``, and each arm.

    A word with one value is an override of all runs. A value with a comma of its own is quoted or in brackets. Raises
    SettingsError where nothing is swept, or where two runs would have the same name.
    """
    axes: dict[str, list[Any]] = {}
    fixed = []
    keys = [word.partition("=")[0].strip() for word in words]
    for key, word in zip(keys, words, strict=True):
        if len(tried := _values(word)) > 1:
            axes[key] = tried
        else:
            fixed.append(word)
    for key in axes:
        if keys.count(key) > 1:
            raise SettingsError(f"sweep: {key} is given twice; give it once, with all its values")
    for key in {"name", "output_dir"} & set(axes):
        raise SettingsError(f"sweep: {key} does not affect the results; sweep another setting")
    if not axes:
        raise SettingsError("sweep: nothing is swept; give a setting several values, optim.learning_rate=1e-3,2e-3")
    cells = []
    for values in itertools.product(*axes.values()):
        written = [json.dumps(value, default=str, ensure_ascii=False) for value in values]
        chosen = [f"{key}={text}" for key, text in zip(axes, written, strict=True)]
        end = "".join(f"-{key}-{_plain(value)}" for key, value in zip(axes, values, strict=True))
        for run in planned_runs(name_or_path, [*fixed, *chosen], arms):
            recipe = Recipe.build({**run.plain(), "name": run.name + end})
            cells.append(SweptCell(recipe, run.name, values))
    names = [cell.recipe.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"sweep: two runs would be named {name}; give each value once")
    return Sweep(name_or_path, tuple(fixed), axes, cells)


@dataclass(frozen=True)
class SweptLosses:
    """The last validation of each run by its name, infinity if it diverged; ``unit`` is one of `UNITS`."""

    by_run: dict[str, float]
    unit: str = "loss"


def run_sweep(sweep: Sweep, train: Callable[[Recipe], Path]) -> SweptLosses:
    """Train each cell that has not finished; return how each run validates.

    Where data are swept, or differ by arm, tokens differ, and a loss per token says nothing; bits per byte are compared
    where they are known.
    """
    found: dict[str, dict[str, Any]] = {}
    for cell in sweep.cells:
        try:
            events = RunRecord(train(cell.recipe)).events
        except NonFiniteError:
            found[cell.recipe.name] = dict.fromkeys(UNITS)
            continue
        valid = [event for event in events if event["event"] == "valid"]
        if not valid:
            raise SettingsError("sweep: the valid split has less than one row; raise data.valid_fraction")
        found[cell.recipe.name] = valid[-1]
    data = len({json.dumps(cell.recipe.plain()["data"], sort_keys=True) for cell in sweep.cells}) > 1
    unit = "bits_per_byte" if data and all("bits_per_byte" in line for line in found.values()) else "loss"
    return SweptLosses({name: math.inf if line[unit] is None else line[unit] for name, line in found.items()}, unit)


def report_sweep(sweep: Sweep, measured: SweptLosses) -> str:
    """Write table and figure beside the runs; return the table and what it says about the grid's edges."""
    losses, (short, long) = measured.by_run, UNITS[measured.unit]
    arms = dict.fromkeys(cell.arm for cell in sweep.cells)
    best = [
        min((cell for cell in sweep.cells if cell.arm == arm), key=lambda cell: losses[cell.recipe.name])
        for arm in arms
    ]
    lines = [
        f"| run | {' | '.join(sweep.axes)} | {short} |",
        "|---|" + "---|" * (len(sweep.axes) + 1),
    ]
    for cell in sweep.cells:
        loss = losses[cell.recipe.name]
        shown = f"{loss:.4f}" if math.isfinite(loss) else "diverged"
        values = " | ".join(_plain(value) for value in cell.values)
        lines.append(f"| {cell.arm} | {values} | {f'**{shown}**' if cell in best else shown} |")
    decided = [cell for cell in best if math.isfinite(losses[cell.recipe.name]) and not _tied(sweep, losses, cell)]
    notes = [note for cell in decided for note in _edges(sweep, cell)]
    text = "\n".join([*lines, "", *notes] if notes else lines) + "\n"
    write_text(sweep.files.with_name(sweep.files.name + ".md"), text)
    write_text(sweep.files.with_name(sweep.files.name + ".svg"), _figure(sweep, losses, long))
    return text


def _values(word: str) -> list[Any]:
    """Return the values of ``key=a,b``, read as the items of a YAML list."""
    key, _, value = word.partition("=")
    return [value] if value.lstrip().startswith(NO_VALUE) else read_yaml(f"[{value}]", key)


def _plain(value: Any) -> str:
    text = f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)
    if _numeric([value]):
        return text  # with its sign
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _tied(sweep: Sweep, losses: dict[str, float], best: SweptCell) -> bool:
    """Return whether another run of the arm validates exactly as well."""
    alike = [losses[cell.recipe.name] for cell in sweep.cells if cell.arm == best.arm]
    return alike.count(losses[best.recipe.name]) > 1


def _edges(sweep: Sweep, best: SweptCell) -> list[str]:
    """Say for each swept number whether the best value is the least or the largest tried, and which to try next."""
    notes = []
    for place, (key, values) in enumerate(sweep.axes.items()):
        if key.endswith("seed") or not _numeric(values) or best.values[place] not in (min(values), max(values)):
            continue  # a seed has no order
        ordered = sorted(values, reverse=best.values[place] == min(values))
        edge = "largest" if best.values[place] == max(values) else "smallest"
        note = f"{best.arm}: {key} is best at {_plain(ordered[-1])}, the {edge} tried"
        further = _further(ordered[-1], ordered[-2])
        try:
            load_recipe(sweep.name_or_path, [*sweep.overrides, f"{key}={further}"])
        except SettingsError:
            further = ordered[-1]
        notes.append(f"{note}; try {_plain(further)}" if further != ordered[-1] else note)
    return notes


def _further(edge: float, before: float) -> float:
    """Return the next value of a grid beyond its edge: by the same factor, or by the same step where there is none."""
    further = edge * edge / before if edge > 0 and before > 0 else 2 * edge - before
    return round(further) if isinstance(edge, int) else float(f"{further:.3g}")


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _figure(sweep: Sweep, losses: dict[str, float], label: str) -> str:
    """Draw the loss over the first swept setting, a line for each arm and combination of the others."""
    (key, values), *others = sweep.axes.items()
    numeric = _numeric(values)
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in sweep.cells:
        rest = [f"{name} {_plain(value)}" for (name, _), value in zip(others, cell.values[1:], strict=True)]
        at = cell.values[0] if numeric else values.index(cell.values[0])
        if math.isfinite(losses[cell.recipe.name]):
            lines.setdefault(", ".join([cell.arm, *rest]), []).append((at, losses[cell.recipe.name]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, points) in enumerate(lines.items()):
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, color=series_colour(number), marker=series_marker(number), label=name)
        if not numeric:
            axes.set_xticks(range(len(values)), [_plain(value) for value in values])
        else:
            if min(values) > 0:
                axes.set_xscale("log")
            axes.set_xticks(sorted(values))
            plain_ticks(axes.xaxis)
        axes.set_xlabel(key)
        axes.set_ylabel(label)
        if lines:
            axes.legend()

    return draw_svg_file(draw, (6.4, 4.0), f"{sweep.files.name}: validation loss by {key}")

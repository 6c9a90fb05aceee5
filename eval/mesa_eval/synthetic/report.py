"""Report a grid of synthetic tasks: terminal table, `report.json`, `report.md`, a self-contained page, and figures."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from mesa_eval.report.templating import render
from mesa_eval.report.wording import bracket, number
from mesa_eval.synthetic.figures import grid_figure, state_figure
from mesa_eval.synthetic.grid import Grid, Line, guesses, lines, read_grid
from mesa_eval.synthetic.row_scores import RowScores
from mesa_eval.uncertainty.bootstrap import DRAWS
from mesalm.draw import draw_svg_file
from mesalm.files import write_text
from mesalm.markdown import plain
from mesalm.wording import plural

DIGITS = 3
DASH = "\u2013"


def report_grid(folder: Path, *, quiet: bool = False) -> Path:
    """Print the tables of a grid, write its report into its folder and return the path of the HTML page."""
    grid = read_grid(folder)
    tables = [_table(grid, measure) for measure in grid.measures()]
    if not quiet:
        _print(grid, tables)
    write_text(folder / "report.json", json.dumps(report_data(grid), indent=1, allow_nan=False))
    write_text(folder / "report.md", markdown(grid, tables))
    write_text(folder / "report.html", render_page(grid, tables))
    for measure in grid.measures():
        drawn = grid_figure(grid, measure, draw_svg_file)
        if measure.places and drawn is not None:
            write_text(folder / f"{measure.key}.svg", drawn)
    return folder / "report.html"


def report_data(grid: Grid) -> dict[str, Any]:
    """Return all numbers of the report as plain data; raw scores stay in the cells' folders."""
    return {
        "name": grid.name,
        "missing": grid.missing,
        "bootstrap_draws": DRAWS,
        "rows": [
            {
                "measure": measure.key,
                "label": measure.label,
                "better": measure.better,
                "arm": line.setting.arm,
                "point": line.setting.point,
                "task": {"class": type(line.setting.task).__name__, **line.setting.task.model_dump(mode="json")},
                "best_rate": line.setting.best_rate,
                "rates": line.setting.rates,
                "parameters": line.setting.parameters,
                "state_numbers": line.setting.state_numbers,
                "steps": {run.seed: run.steps for run in line.setting.runs},
                "mean": line.mean,
                "seeds": line.values,
                "spread": line.spread,
                "difference": None if line.difference is None else vars(line.difference),
                "guesses": line.guesses,
                "null": line.null,
                **_by_place(grid, line, measure),
            }
            for measure in grid.measures()
            for line in lines(grid, measure.key)
        ],
    }


def _by_place(grid: Grid, line: Line, measure: RowScores) -> dict[str, Any]:
    """Return a setting's mean over seeds and the guesses at each position; empty if the statistic has no positions."""
    if not measure.places:
        return {}
    own = [found.columns for found in line.setting.measured(measure.key).values()]
    guessed = {name: found.columns for name, found in guesses(grid, line.setting, measure.key).items()}
    return {
        "places": measure.places,
        "by_place": [float(f"{value:.5g}") for value in np.mean(own, axis=0)],
        "guesses_by_place": {name: [float(f"{value:.5g}") for value in columns] for name, columns in guessed.items()},
    }


def markdown(grid: Grid, tables: list[dict[str, Any]]) -> str:
    """Return the tables in Markdown."""
    text = [f"# {plain(grid.name)}", "", *(f"- {plain(note)}" for note in notes(grid)), ""]
    for table in tables:
        text += [f"## {plain(table['title'])}", "", "| " + " | ".join(map(plain, table["headings"])) + " |"]
        text.append("|" + "---|" * len(table["headings"]))
        text += ["| " + " | ".join(map(plain, row)) + " |" for row in table["rows"]]
        text.append("")
    return "\n".join(text)


def notes(grid: Grid) -> list[str]:
    """Return notes on how the numbers were computed and which runs are missing."""
    several = len(grid.seeds) > 1
    said = [
        f"Mean over {len(grid.seeds)} training seeds, with smallest and largest; differences are paired by seed, "
        "with 95 % t intervals."
        if several
        else "One training seed: brackets are 95 % bootstrap intervals over rows without the spread between seeds; "
        "differences are paired by row.",
        "The learning rate is the best on the valid rows; scores are of the test rows, the same for all models. Rows "
        "in parentheses are guesses without a trained model. The null is the best guess that ignores the query.",
        "State: the numbers that a model keeps of one sequence of the task's length.",
    ]
    if grid.missing:
        said.append(f"{plural(grid.missing, 'run has not ended and is', 'runs have not ended and are')} left out.")
    diverged = [run for setting in grid.settings for run in setting.runs if run.scores is None]
    if diverged:
        said.append(f"{plural(len(diverged), 'run that diverged is', 'runs that diverged are')} left out.")
    return said


def render_page(grid: Grid, tables: list[dict[str, Any]]) -> str:
    """Return the page as self-contained HTML, without external resources."""
    figures = [
        [Markup(svg) for svg in (grid_figure(grid, measure), state_figure(grid, measure)) if svg is not None]
        for measure in grid.measures()
    ]
    return render(
        "synthetic.html.j2",
        name=grid.name,
        notes=notes(grid),
        sections=[{**table, "figures": drawn} for table, drawn in zip(tables, figures, strict=True)],
        recipe=(grid.folder / "recipe.yaml").read_text(encoding="utf-8"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _table(grid: Grid, measure: RowScores) -> dict[str, Any]:
    """Return headings and rows of one statistic as text; ``numeric`` tells which columns are numbers."""
    found = lines(grid, measure.key)
    axes = list(grid.axes)
    spread = "range over seeds" if len(grid.seeds) > 1 else "95 % interval"
    headings = [*(axis.rpartition(".")[2].replace("_", " ") for axis in axes), "arm", "best rate", "steps", "state"]
    headings += [measure.label, spread, f"less {grid.arms[0]}"]
    rows = []
    for place, line in enumerate(found):
        where = [line.setting.point[axis] for axis in axes]
        steps = [run.steps for run in line.setting.runs if run.steps is not None]
        rows.append(
            [
                *where,
                line.setting.arm,
                f"{line.setting.best_rate:g}",
                f"{sum(steps) / len(steps):,.0f}",
                f"{line.setting.state_numbers:,}",
                number(line.mean, DIGITS),
                DASH if line.spread is None else f"{line.spread[0]:.{DIGITS}f} to {line.spread[1]:.{DIGITS}f}",
                _difference(line),
            ]
        )
        if place + 1 == len(found) or found[place + 1].setting.point != line.setting.point:
            for name, value in line.guesses.items():
                shown = f"(null: {name})" if name == line.null else f"({name})"
                rows.append([*where, shown, DASH, DASH, DASH, f"{value:.{DIGITS}g}", DASH, DASH])
    return {
        "title": f"{measure.label[:1].upper()}{measure.label[1:]} ({measure.better} is better)",
        "headings": headings,
        "numeric": [False] * (len(axes) + 1) + [True] * (len(headings) - len(axes) - 1),
        "rows": rows,
    }


def _difference(line: Line) -> str:
    if line.difference is None:
        return DASH
    return f"{number(line.difference.value, DIGITS, signed=True)} {bracket(line.difference, DIGITS, signed=True)}"


def _print(grid: Grid, tables: list[dict[str, Any]]) -> None:
    """Print each table with all axes in one column."""
    out = Console()
    for table in tables:
        shown = Table(title=f"{grid.name}: {table['title']}", title_justify="left")
        if grid.axes:
            shown.add_column("")
        for heading in ("arm", "rate", "steps", "state", "score", table["headings"][len(grid.axes) + 5]):
            shown.add_column(heading, justify="left" if heading == "arm" else "right")
        shown.add_column(f"less {grid.arms[0]}", justify="right")
        for row in table["rows"]:
            cells = [", ".join(row[: len(grid.axes)])] * bool(grid.axes) + row[len(grid.axes) :]
            shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
        out.print(shown)
    for note in notes(grid):
        out.print(f"- {note}", highlight=False, markup=False)

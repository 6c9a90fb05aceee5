"""Figures of a grid of synthetic tasks: scores along an axis or by state size, and curves by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mesa_eval.synthetic.grid import Grid, Line, guesses, lines
from mesa_eval.synthetic.row_scores import RowScores
from mesalm.draw import INK, MUTED, draw_svg, plain_ticks, reference_dash, series_colour, series_marker

PANELS_A_ROW = 3
Writer = Callable[[Callable[[Figure], None], tuple[float, float], str], str]
"""Function(draw, size in inches, label) -> the text of a drawing."""


def grid_figure(grid: Grid, measure: RowScores, write: Writer = draw_svg) -> str | None:
    """Draw one statistic of the whole grid as an ``<svg>``; return None if no run has finished.

    ``write`` makes the text of a drawing: an element of a page, or by `draw_svg_file` a file of its own.
    """
    found = lines(grid, measure.key)
    if not found:
        return None
    return (_curves if measure.places else _axis_panels)(grid, measure, found, write)


def state_figure(grid: Grid, measure: RowScores) -> str | None:
    """Plot one statistic against the size of the models' state in numbers, one panel per task, as an ``<svg>``.

    Returns None if all models of the grid have the same size.
    """
    found = [] if measure.places else lines(grid, measure.key)
    sizes = [axis for axis, values in grid.axes.items() if axis.startswith("model.") and len(values) > 1]
    panels: dict[tuple[str, ...], list[Line]] = {}
    for line in found:
        panels.setdefault(tuple(v for axis, v in line.setting.point.items() if axis not in sizes), []).append(line)
    if not found or not sizes:
        return None

    def draw(figure: Figure) -> None:
        for axes, (names, inside) in zip(_panels(figure, len(panels)), panels.items(), strict=False):
            for index, arm in enumerate(grid.arms):
                own = sorted((line.setting.state_numbers, line.mean) for line in inside if line.setting.arm == arm)
                if own:
                    style = {"marker": series_marker(index), "color": series_colour(index)}
                    axes.plot(*zip(*own, strict=True), label=arm, **style)
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
            axes.set_xlabel("numbers in the state\nat the training length")
            axes.set_title(", ".join(names))
        _label(figure, measure)

    return draw_svg(draw, _size(len(panels), 1.0), f"{grid.name}: {measure.label} by numbers in the state")


def _axis_panels(grid: Grid, measure: RowScores, found: list[Line], write: Writer) -> str:
    """Draw one panel per combination of axis values, with the last axis of several values as the x axis."""
    long = [axis for axis, values in grid.axes.items() if len(values) > 1]
    across = long[-1] if long else None
    panels: dict[tuple[str, ...], list[Line]] = {}
    for line in found:
        panels.setdefault(tuple(line.setting.point[axis] for axis in grid.axes if axis != across), []).append(line)
    ticks = grid.axes[across] if across else [""]

    def draw(figure: Figure) -> None:
        for axes, (names, inside) in zip(_panels(figure, len(panels)), panels.items(), strict=False):
            for index, arm in enumerate(grid.arms):
                _arm_line(axes, [line for line in inside if line.setting.arm == arm], ticks, across, index, arm)
            _guess_lines(axes, inside, ticks, across)
            axes.set_xticks(range(len(ticks)), [tick.replace(", ", "\n") for tick in ticks])
            axes.set_xlim(-0.4, len(ticks) - 0.6)
            axes.set_xlabel(across.rpartition(".")[2].replace("_", " ") if across else "")
            axes.set_title(", ".join(name for name in names if len(panels) > 1))
            if measure.key in ("accuracy", "legal"):
                axes.set_ylim(-0.03, 1.05)
        _label(figure, measure)

    return write(draw, _size(len(panels), max(1.0, len(ticks) / 5)), f"{grid.name}: {measure.label}")


def _arm_line(axes: Any, chosen: list[Line], ticks: list[str], across: str | None, index: int, arm: str) -> None:
    shift = 0.08 * index - 0.1
    colour = series_colour(index)
    places = [ticks.index(line.setting.point[across]) if across else 0 for line in chosen]
    for place, line in zip(places, chosen, strict=True):
        if len(line.values) > 1:
            axes.plot([place + shift] * len(line.values), list(line.values.values()), "o", color=colour, alpha=0.4)
        elif line.spread is not None:
            axes.plot([place + shift] * 2, list(line.spread), color=colour, linewidth=1, alpha=0.6)
    style = "o-" if len(places) > 1 else "o"
    axes.plot([place + shift for place in places], [line.mean for line in chosen], style, color=colour, label=arm)


def _guess_lines(axes: Any, inside: list[Line], ticks: list[str], across: str | None) -> None:
    levels: dict[str, dict[int, float]] = {}
    for line in inside:
        for name, value in line.guesses.items():
            levels.setdefault(name, {})[ticks.index(line.setting.point[across]) if across else 0] = value
    for number, (name, by_place) in enumerate(levels.items()):
        places = sorted(by_place)
        x = [places[0] - 0.3, *places, places[-1] + 0.3]
        y = [by_place[places[0]], *(by_place[place] for place in places), by_place[places[-1]]]
        axes.plot(x, y, linestyle=reference_dash(number), color=MUTED, linewidth=1.2, label=name)


def _curves(grid: Grid, measure: RowScores, found: list[Line], write: Writer) -> str:
    """Plot the statistic by position, one panel per grid point: means over seeds with their range, and the guesses."""
    points = [point for point in grid.points() if any(line.setting.point == point for line in found)]

    def draw(figure: Figure) -> None:
        for axes, point in zip(_panels(figure, len(points)), points, strict=False):
            settings = [line.setting for line in found if line.setting.point == point]
            for number, (name, guess) in enumerate(guesses(grid, settings[0], measure.key).items()):
                # drawn above the arms, so that both remain visible where a model matches an oracle
                style = {"linestyle": reference_dash(number), "color": INK, "linewidth": 1.0, "zorder": 3}
                axes.plot(guess.places, guess.columns, label=name, **style)
            for setting in settings:
                measured = list(setting.measured(measure.key).values())
                columns = np.stack([one.columns for one in measured])
                colour = series_colour(grid.arms.index(setting.arm))
                axes.plot(measured[0].places, columns.mean(0), color=colour, label=setting.arm)
                axes.fill_between(
                    measured[0].places, columns.min(0), columns.max(0), color=colour, alpha=0.2, linewidth=0
                )
            axes.set_title(", ".join(point.values()))
            axes.set_xlabel("shots or position")
        values = np.concatenate([line.get_ydata() for axes in figure.axes for line in axes.lines])
        if values.min() > 0 and values.max() >= 10 * values.min():  # a narrower log axis may have no labelled tick
            for axes in figure.axes:
                axes.set_yscale("log")
                plain_ticks(axes.yaxis)
        _label(figure, measure)

    return write(draw, _size(len(points), 1.0), f"{grid.name}: {measure.label}")


def _label(figure: Figure, measure: RowScores) -> None:
    """Label the axis and put one legend for all panels beside them, where it covers nothing."""
    figure.axes[0].set_ylabel(measure.label)
    shown: dict[str, Any] = {}
    for axes in figure.axes:  # a panel may lack entries that others have
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(name, handle)
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", fontsize=9)


def _panels(figure: Figure, count: int) -> list[Any]:
    rows, columns = _shape(count)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    for spare in panels[count:]:
        spare.set_visible(False)
    return panels[:count]


def _shape(count: int) -> tuple[int, int]:
    return -(-count // PANELS_A_ROW), min(count, PANELS_A_ROW)


def _size(count: int, stretch: float) -> tuple[float, float]:
    rows, columns = _shape(count)
    return max(7.2, 3.0 * columns * stretch), 3.3 * rows

"""Figures of a comparison: training curves, forest plots of differences, loss by position, scores by shots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mesa_eval.comparison.record import Comparison, Difference, Row
from mesa_eval.report.wording import number
from mesalm.draw import INK, MUTED, draw_svg, series_colour, series_marker

FAINT: dict[str, Any] = {"alpha": 0.35, "linewidth": 1.0}  # one training seed among several


def training_figure(comparison: Comparison) -> str | None:
    """Plot validation bits per byte (or training loss) against tokens; return None if no run has a journal."""
    curves = [scores.model.training for scores in comparison.scores]
    kind = "valid" if any(curve.get("valid") for curve in curves) else "loss"
    if not any(curve.get(kind) for curve in curves):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, arm in enumerate(comparison.arms):
            lines = [curves[place][kind] for place in arm.members if curves[place].get(kind)]
            colour, marker = series_colour(index), series_marker(index)
            for line in lines if len(lines) > 1 else []:
                axes.plot([x / 1e6 for x, _ in line], [y for _, y in line], color=colour, **FAINT)
            mean = _mean_curve(lines)
            if mean:
                mark = marker if len(mean) < 40 else ""
                axes.plot([x / 1e6 for x, _ in mean], [y for _, y in mean], marker=mark, color=colour, label=arm.name)
        axes.set_xlabel("million tokens trained")
        axes.set_ylabel("validation, bits per byte" if kind == "valid" else "training loss, nats per token")
        axes.legend()

    return draw_svg(draw, (7.2, 3.3), f"Training curves of {', '.join(comparison.names)}")


def _mean_curve(lines: Sequence[list[list[float]]]) -> list[tuple[float, float]]:
    """Return the mean of the curves at the x values that all of them share."""
    tables = [{point[0]: point[1] for point in line} for line in lines]
    shared = [x for x in (tables[0] if tables else {}) if all(x in table for table in tables)]
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in shared]


def text_figure(comparison: Comparison) -> str | None:
    """Draw a forest plot of the differences in bits per byte by domain; return None for a single domain."""
    text = comparison.section("text")
    rows = [row for row in text if row.metric == "bits_per_byte" and row.variant != "file"]
    entries = [(row.label, row) for row in rows]
    return _forest(comparison, entries, "bits per byte", "left") if len(entries) > 1 else None


def tested_figure(comparison: Comparison) -> str | None:
    """Draw a forest plot of the differences in the primary average and in the tested score of every task."""
    entries: list[tuple[str, Row]] = [(row.label, row) for row in comparison.section("primary")]
    for task in comparison.tasks:
        row = comparison.tested_row(task)
        if row is not None and row.better == "higher":
            entries.append((f"{task}, {row.label}", row))
    return _forest(comparison, entries, "score", "right") if entries else None


def _forest(comparison: Comparison, entries: Sequence[tuple[str, Row]], what: str, better: str) -> str | None:
    """Draw one line per entry: each arm's difference with its decisive interval, and a tick for each training seed."""
    others = comparison.compared
    if not any(row.differences[index].interval for _, row in entries for index in others):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        step = 0.7 / max(1, len(others))
        for place, index in enumerate(others):
            compared = [height for height, (_, row) in enumerate(entries) if row.differences[index].decisive]
            for height in compared:
                y = height + (place - (len(others) - 1) / 2) * step
                label = comparison.names[index] if height == compared[0] else None
                _forest_mark(axes, entries[height][1].differences[index], y, index, label)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(entries)), [label for label, _ in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{what} less that of {comparison.base} ({better} is better)")
        if len(others) > 1:
            figure.legend(loc="outside upper left", ncols=min(4, len(others)), fontsize=9)

    verdicts = [
        f"{label}, {comparison.names[index]}: {words}"
        for label, row in entries
        for index in others
        if (words := comparison.verdict(row, index))
    ]
    return draw_svg(
        draw,
        (7.2, 1.0 + (0.3 + 0.13 * len(others)) * len(entries) + (0.3 if len(others) > 1 else 0)),
        f"Difference in {what} from {comparison.base}. {'; '.join(verdicts)}",
    )


def _forest_mark(axes: Any, difference: Difference, y: float, index: int, label: str | None) -> None:
    found = difference.decisive
    if found is None:
        return
    colour = series_colour(index)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [y, y], color=colour)
    if len(difference.by_seed) > 1:
        values = [value for _, value in difference.by_seed]
        axes.plot(values, [y] * len(values), "|", color=colour, markersize=9, alpha=0.75)
    axes.plot([found.value], [y], series_marker(index), color=colour, label=label)


def position_figure(comparison: Comparison, section: str, title: str) -> str | None:
    """Plot binned loss by position and, below it, each arm's paired difference with its interval as a band."""
    rows = [row for row in comparison.section(section) if row.x is not None]
    if not rows:
        return None
    others = [i for i in comparison.compared if any(row.differences[i].interval for row in rows)]
    curves = _curves(comparison, rows)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2 if others else 1, 1, sharex=True, squeeze=False)[:, 0]
        for index, known in curves:
            places, values = [row.x for row, _ in known], [value for _, value in known]
            style = {"marker": series_marker(index), "color": series_colour(index), "label": comparison.names[index]}
            panels[0].plot(places, values, **style)
        panels[0].set_title(title)
        panels[0].legend()
        if others:
            for index in others:
                _position_difference(panels[1], rows, index)
            panels[1].axhline(0, color=INK, linewidth=1)
            panels[1].set_title(f"Difference from {comparison.base}, with 95 % band (below 0 is better)")
        for axes in panels:
            axes.set_ylabel("nats per token")
        _position_axis(panels[-1], rows)

    ends = [
        f"{comparison.names[index]} from {number(known[0][1], 2)} to {number(known[-1][1], 2)}"
        for index, known in curves
    ]
    return draw_svg(draw, (7.2, 5.6 if others else 3.3), f"{title}, nats per token: {'; '.join(ends)}")


def _position_axis(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row.last for row in rows if row.last is not None}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("position in the window, tokens")


def _curves(comparison: Comparison, rows: Sequence[Row]) -> list[tuple[int, list[tuple[Row, float]]]]:
    """Return, for each arm that has any values, its index and its (row, value) pairs."""
    known = [
        [(row, value.value) for row in rows if (value := row.values[index]) is not None]
        for index in range(len(comparison.names))
    ]
    return [(index, curve) for index, curve in enumerate(known) if curve]


def _position_difference(axes: Any, rows: Sequence[Row], index: int) -> None:
    colour = series_colour(index)
    cells = [(row.x, row.differences[index]) for row in rows]
    known = [(x, difference, found) for x, difference in cells if (found := difference.decisive) is not None]
    bands = [(x, found.low, found.high) for x, _, found in known if found.low is not None]
    if bands:
        x, low, high = zip(*bands, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    seeds = len(known[0][1].by_seed) if known else 0
    for seed in range(seeds) if seeds > 1 else ():
        axes.plot([x for x, _, _ in known], [d.by_seed[seed][1] for _, d, _ in known], color=colour, **FAINT)
    places = [x for x, _, _ in known]
    axes.plot(places, [found.value for _, _, found in known], marker=series_marker(index), color=colour)


def task_figure(comparison: Comparison, task: str) -> str | None:
    """Plot a task's accuracy (or exact match), with its null score, and its bits per byte by number of shots."""
    rows = [row for row in comparison.of_task(task) if not row.variant and not row.group]
    found = [row for row in rows if row.metric == "accuracy"] or [row for row in rows if row.metric == "exact"]
    answer = [row for row in rows if row.metric == "answer"]
    if not found or not answer or len(found) < 2:
        return None

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _shots_panel(left, comparison, found, found[0].unit.capitalize())
        _shots_panel(right, comparison, answer, "Answer, bits per byte")
        chance = [next((value for value in row.chance if value is not None), None) for row in found]
        _bound(left, chance, "null", linestyle=(0, (4, 3)), color=MUTED)
        _bound(left, [row.ceiling for row in found], "knows the kind of rule", linestyle=(0, (1, 2)), color=INK)
        left.set_ylim(-0.03, 1.03)
        left.legend(fontsize=9)

    ends = [
        f"{comparison.names[index]} {number(known[-1][1], 2)} at {known[-1][0].label}"
        for index, known in _curves(comparison, found)
    ]
    return draw_svg(draw, (7.2, 2.9), f"{task}, {found[0].unit} by number of shots: {', '.join(ends)}")


def _shots_panel(axes: Any, comparison: Comparison, rows: Sequence[Row], title: str) -> None:
    """Plot one score of every arm by number of shots."""
    for index, name in enumerate(comparison.names):
        _shots_line(axes, rows, index, len(comparison.names), name)
    axes.set_title(title)
    axes.set_xlabel("shots")
    axes.set_xticks(range(len(rows)), [str(row.shots) for row in rows])


def _bound(axes: Any, values: Sequence[float | None], label: str, **style: Any) -> None:
    """Plot a reference score that needs no model, by number of shots, where it is known."""
    known = [(x, value) for x, value in enumerate(values) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), linewidth=1.2, label=label, **style)


def _shots_line(axes: Any, rows: Sequence[Row], index: int, models: int, name: str) -> None:
    """Draw one arm's line, shifted slightly so that the intervals and seeds of all arms stay visible."""
    shift = 0.06 * (index - (models - 1) / 2)
    points = [(x + shift, row, value) for x, row in enumerate(rows) if (value := row.values[index]) is not None]
    colour = series_colour(index)
    for x, row, value in points:
        seeds = [seed for seed in row.by_seed[index] if seed is not None]
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds, "_", color=colour, markersize=7, alpha=0.6)
        elif value.low is not None:
            axes.plot([x, x], [value.low, value.high], color=colour, linewidth=1, alpha=0.6)
    xs, ys = [x for x, _, _ in points], [value.value for _, _, value in points]
    axes.plot(xs, ys, marker=series_marker(index), color=colour, label=name)

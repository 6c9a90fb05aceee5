"""Figures as inline SVG: text stays text, and every colour is a variable of the page, so dark mode works.

Matplotlib draws with marker colours (`INK`, `SERIES` ...) that are then replaced by CSS variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mesa_eval.compare import Comparison, Row

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def series_colour(index: int) -> str:
    """Return the marker colour of the model at an index; after eight models colours repeat."""
    return SERIES[index % len(SERIES)]


def training_figure(comparison: Comparison) -> str | None:
    """Draw bits per byte on validation text (or the training loss) over tokens; None if no run has a journal."""
    curves = [scores.model.training for scores in comparison.scores]
    kind = "valid" if any(curve.get("valid") for curve in curves) else "loss"
    if not any(curve.get(kind) for curve in curves):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            points = curve.get(kind, [])
            if points:
                x, y = [point[0] / 1e6 for point in points], [point[1] for point in points]
                marker = "o" if len(points) < 40 else ""
                axes.plot(x, y, marker, linestyle="-", color=series_colour(index), label=comparison.names[index])
        axes.set_xlabel("million tokens trained")
        axes.set_ylabel("validation, bits per byte" if kind == "valid" else "training loss, nats per token")
        axes.legend()

    return _svg(draw, (7.2, 3.3), "training curve")


def text_figure(comparison: Comparison) -> str | None:
    """Draw each model's difference from the baseline in bits per byte by domain; None if there is one domain."""
    rows = [row for row in comparison.section("text") if row.key.startswith("bits_per_byte")]
    others = [i for i in range(len(comparison.names)) if i != comparison.baseline]
    if len(rows) < 2 or not others:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        step = 0.6 / max(1, len(others))
        for place, index in enumerate(others):
            for number, row in enumerate(rows):
                interval = row.differences[index].interval
                if interval is None:
                    continue
                y = number + (place - (len(others) - 1) / 2) * step
                if interval.low is not None and interval.high is not None:
                    axes.plot([interval.low, interval.high], [y, y], color=series_colour(index))
                axes.plot([interval.value], [y], "o", color=series_colour(index))
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"bits per byte less those of {comparison.names[comparison.baseline]} (left is better)")

    return _svg(draw, (7.2, 1.0 + 0.42 * len(rows)), "difference in bits per byte by domain")


def position_figure(comparison: Comparison) -> str | None:
    """Draw loss by position and, below it, each model's paired difference with its interval as a band."""
    rows = comparison.section("position")
    if not rows:
        return None
    centres = [row.x or 1.0 for row in rows]
    others = [i for i in range(len(comparison.names)) if any(row.differences[i].interval for row in rows)]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2 if others else 1, 1, sharex=True, squeeze=False)[:, 0]
        for index, name in enumerate(comparison.names):
            points = [(x, row.values[index]) for x, row in zip(centres, rows, strict=True)]
            shown = [(x, value.value) for x, value in points if value is not None]
            if shown:
                panels[0].plot(*zip(*shown, strict=True), "o-", color=series_colour(index), label=name)
        panels[0].set_ylabel("nats per token")
        panels[0].set_title("Loss by position")
        panels[0].legend()
        for index in others:
            cells = [(x, row.differences[index].interval) for x, row in zip(centres, rows, strict=True)]
            known = [(x, cell) for x, cell in cells if cell is not None]
            xs = [x for x, _ in known]
            colour = series_colour(index)
            bands = [(x, cell.low, cell.high) for x, cell in known if cell.low is not None]
            if bands:
                x, low, high = zip(*bands, strict=True)
                panels[1].fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
            panels[1].plot(xs, [cell.value for _, cell in known], "o-", color=colour)
        if others:
            base = comparison.names[comparison.baseline]
            panels[1].axhline(0, color=INK, linewidth=1)
            panels[1].set_ylabel("nats per token")
            panels[1].set_title(f"Difference from {base}, with 95 % band (below 0 is better)")
        panels[-1].set_xscale("log", base=2)
        panels[-1].set_xticks([2**number for number in range(len(rows))])
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[-1].xaxis.set_minor_locator(NullLocator())
        panels[-1].set_xlabel("position in the window, tokens")

    return _svg(draw, (7.2, 5.6 if others else 3.3), "loss by position")


def task_figure(comparison: Comparison, section: str) -> str | None:
    """Draw a task's accuracy and the answer's bits per byte by number of shots, with intervals and chance."""
    rows = comparison.section(section)
    accuracy = [row for row in rows if row.key.endswith("/accuracy")]
    answer = [row for row in rows if row.key.endswith("/answer")]
    if not accuracy or not answer:
        return None

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axes, chosen, title in ((left, accuracy, "Accuracy"), (right, answer, "Answer, bits per byte")):
            for index, name in enumerate(comparison.names):
                _shots_line(axes, chosen, index, len(comparison.names), name)
            axes.set_title(title)
            axes.set_xlabel("shots")
            axes.set_xticks(range(len(chosen)), [row.label.split()[0] for row in chosen])
        chance = [next((value for value in row.chance if value is not None), None) for row in accuracy]
        known = [(x, value) for x, value in enumerate(chance) if value is not None]
        left.plot(*zip(*known, strict=True), linestyle=(0, (4, 3)), color=MUTED, linewidth=1.2, label="chance")
        left.set_ylim(-0.03, 1.03)
        left.legend(fontsize=9)

    return _svg(draw, (7.2, 2.9), f"{section.removeprefix('task/')} by number of shots")


def _shots_line(axes: Any, rows: Sequence[Row], index: int, models: int, name: str) -> None:
    """Draw one model's line; models stand a little apart so that their intervals can be told apart."""
    shift = 0.06 * (index - (models - 1) / 2)
    points = [(x + shift, row.values[index]) for x, row in enumerate(rows)]
    known = [(x, value) for x, value in points if value is not None]
    for x, value in known:
        if value.low is not None:
            axes.plot([x, x], [value.low, value.high], color=series_colour(index), linewidth=1, alpha=0.6)
    axes.plot([x for x, _ in known], [value.value for _, value in known], "o-", color=series_colour(index), label=name)


def _svg(draw: Callable[[Figure], None], size: tuple[float, float], label: str) -> str:
    """Run a drawing and return an `<svg>` element that refers to nothing outside and to no fixed colour."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: bold ([\d.]+)px [^;\"]*", r"font-weight: 600; font-size: \1px", text)
    for marker, variable in VARIABLES.items():
        text = text.replace(marker, variable)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)

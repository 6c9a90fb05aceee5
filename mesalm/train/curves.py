"""Plot the curves of several runs from their journals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesalm.draw import draw_svg_file, plain_ticks, series_colour, series_marker
from mesalm.files import expanded, write_text
from mesalm.runs import RunRecord
from mesalm.settings import SettingsError

PANELS = (
    ("tokens", "loss", "training loss (line), validation loss (marks)"),
    ("seconds", "loss", "the same by seconds"),
    ("tokens", "learning_rate", "learning rate"),
    ("tokens", "gradient_norm", "gradient norm"),
    ("tokens", "tokens_per_second", "tokens per second"),
)
"""The panels: the journal fields of x and y, and the title."""


def plot(runs: Sequence[Path], out: Path) -> Path:
    """Draw the journals of run folders, finished or not, into one SVG file; return its path.

    Raises SettingsError for a folder without a journal, or if its journal has no step yet.
    """
    found = {str(path): _lines(expanded(path)) for path in runs}

    def draw(figure: Any) -> None:
        *panels, key = figure.subplots(2, 3).flat
        for axes, (x, y, title) in zip(panels, PANELS, strict=True):
            for number, (step, valid) in enumerate(found.values()):
                style = {"color": series_colour(number)}
                axes.plot(*_points(step, x, y), linewidth=1, **style)
                if y == "loss":
                    axes.plot(*_points(valid, x, y), marker=series_marker(number), **style)
            if y in ("loss", "gradient_norm"):
                axes.set_yscale("log", nonpositive="mask")
                plain_ticks(axes.yaxis)
            axes.set_title(title)
            axes.set_xlabel(x)
        key.axis("off")
        for number, name in enumerate(found):
            key.plot([], [], color=series_colour(number), marker=series_marker(number), label=name)
        key.legend(loc="center")

    write_text(out, draw_svg_file(draw, (13.0, 7.0), "Curves of " + ", ".join(found)))
    return out


def _lines(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the step and validation lines of a run; seconds of validation lines come from neighbouring steps."""
    record = RunRecord(folder)
    if not record.journal.is_file():
        raise SettingsError(f"{folder}: no journal.jsonl here; give the folder of a run")
    step = [event for event in record.events if event["event"] == "step"]
    if not step:
        raise SettingsError(f"{folder}: the journal has no step yet; wait for the first logged step")
    tokens, seconds = ([line[name] for line in step] for name in ("tokens", "seconds"))
    valid = [
        event | {"seconds": float(np.interp(event["tokens"], tokens, seconds))}
        for event in record.events
        if event["event"] == "valid" and "loss" in event
    ]
    return step, valid


def _points(lines: Sequence[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return the values of two fields in the lines that have both."""
    points = [(line[x], line[y]) for line in lines if line.get(x) is not None and line.get(y) is not None]
    return [point[0] for point in points], [point[1] for point in points]

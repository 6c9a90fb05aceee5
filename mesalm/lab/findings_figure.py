"""The figure of an experiment's findings: its curves, and matrices as pictures."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np

from mesalm.lab.claims import Findings
from mesalm.lab.inspection.gate_figure import GRID, MUTED, STYLE

COLOURS = ("#3b6fb6", "#c1662b", "#2f7d5b", "#8a5aa8", "#b3372f", "#8a7000")
INK = "#222222"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{place}" for place, colour in enumerate(COLOURS, 1)
}
"""Colour -> variable of the page that it follows where there is one, from light to dark."""
OWN_STYLE: dict[Any, Any] = {
    **STYLE,
    "axes.grid.axis": "both",
    "text.color": INK,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_findings(findings: Findings, name: str) -> str:
    """Return an SVG element that refers to nothing outside it; empty where there is nothing to draw.

    ``name`` keeps the identifiers inside apart from those of other figures on the same page.
    """
    if not findings.curves and not findings.blocks:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**OWN_STYLE, "svg.hashsalt": name}):
        count = len(findings.blocks)
        figure = Figure(figsize=(8.0, 3.4 + (2.4 if count else 0.0)), layout="constrained")
        parts = figure.subfigures(2 if count else 1, 1, squeeze=False, height_ratios=[3.4, 2.4] if count else None)
        _draw_curves(parts[0, 0].subplots(), findings)
        if count:
            _draw_blocks(np.atleast_1d(parts[1, 0].subplots(1, count)), findings.blocks, findings.divisions)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="Figure of {name}"', 1)


def _draw_curves(axes: Any, findings: Findings) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for place, curve in enumerate(findings.curves):
        style = {"marker": "o", "markersize": 3} if len(curve.x) <= 12 else {}
        axes.plot(curve.x, curve.y, color=COLOURS[place % len(COLOURS)], label=curve.label, linewidth=1.5, **style)
    axes.set_xlabel(findings.x_label)
    axes.set_ylabel(findings.y_label)
    if findings.logarithmic:
        axes.set_yscale("log", nonpositive="mask")  # an exact zero is a gap, not a fall to the edge
    else:
        axes.set_ylim(bottom=min(0.0, *(min(curve.y) for curve in findings.curves)))
    if findings.x_label in ("layers", "lambda", "dimension"):
        axes.set_xscale("log")
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            # the style draws text as it stands, so the powers that matplotlib writes as mathematics would show raw
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="best")


def _draw_blocks(panels: Any, blocks: dict[str, list[list[float]]], divisions: int) -> None:
    """Draw matrices of equal blocks, positive entries blue and negative ones red, each on a scale of its own."""
    for axes, (name, matrix) in zip(panels, blocks.items(), strict=True):
        values = np.asarray(matrix)
        bound = float(np.abs(values).max()) or 1.0
        axes.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, interpolation="nearest")
        axes.grid(False)
        for edge in range(1, divisions):
            at = edge * len(values) / divisions - 0.5
            axes.axhline(at, color=GRID, linewidth=0.8)
            axes.axvline(at, color=GRID, linewidth=0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=8)

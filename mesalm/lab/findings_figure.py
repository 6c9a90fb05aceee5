"""The figure of an experiment's findings: curves, and matrices as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mesalm.draw import GRID, INK, draw_svg, plain_ticks, reference_dash, series_colour
from mesalm.lab.claims import Curve, Findings


def draw_findings(findings: Findings, name: str, published: Sequence[Curve] = ()) -> str:
    """Return a self-contained SVG element, with published curves dashed in the text colour over ours.

    Empty if there is nothing to draw.
    """
    if not findings.curves and not findings.blocks:
        return ""
    count = len(findings.blocks)

    def draw(figure: Any) -> None:
        parts = figure.subfigures(2 if count else 1, 1, squeeze=False, height_ratios=[3.4, 2.4] if count else None)
        _draw_curves(parts[0, 0].subplots(), findings, published)
        if count:
            _draw_blocks(np.atleast_1d(parts[1, 0].subplots(1, count)), findings.blocks, findings.divisions)

    return draw_svg(draw, (8.0, 3.4 + (2.4 if count else 0.0)), f"Figure of {name}")


def _draw_curves(axes: Any, findings: Findings, published: Sequence[Curve]) -> None:
    for place, curve in enumerate(findings.curves):
        style = {"marker": "o", "markersize": 3} if len(curve.x) <= 12 else {}
        axes.plot(curve.x, curve.y, color=series_colour(place), label=curve.label, **style)
    for place, curve in enumerate(published):
        style = {"color": INK, "linestyle": reference_dash(place), "linewidth": 1.0, "marker": "x", "markersize": 4}
        axes.plot(curve.x, curve.y, label=f"published: {curve.label}", **style)
    axes.set_xlabel(findings.x_label)
    axes.set_ylabel(findings.y_label)
    if findings.logarithmic:
        axes.set_yscale("log", nonpositive="mask")  # show an exact zero as a gap, not as a drop to the edge
    else:
        least, largest = (limit(limit(curve.y) for curve in findings.curves) for limit in (min, max))
        if least < largest * 2 / 3:  # else the curves would be too close together
            axes.set_ylim(bottom=min(0.0, least))
    _draw_places(axes, findings)


def _draw_places(axes: Any, findings: Findings) -> None:
    """Choose scales and ticks: integers for counts, and the plotted points on a logarithmic axis with few of them."""
    from matplotlib.ticker import MaxNLocator

    places = sorted({x for curve in findings.curves for x in curve.x})
    if findings.x_label in ("layers", "lambda", "dimension"):
        axes.set_xscale("log")
    elif all(x == int(x) for x in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            plain_ticks(axis)
    if axes.get_xscale() == "log" and len(places) <= 12:
        axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.legend(loc="best")


def _draw_blocks(panels: Any, blocks: dict[str, list[list[float]]], divisions: int) -> None:
    """Draw matrices with grid lines between blocks, positive entries blue, negative red, each on its own scale."""
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

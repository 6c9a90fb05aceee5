"""The figure of an inspection: gates and condition numbers of every head, one row of panels per layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mesalm.draw import GRID, MUTED, SERIES, draw_svg_file
from mesalm.lab.inspection.gate_statistics import FORGET_EDGES, INPUT_EDGES, HeadNumbers

FORGET, INPUT, PLAIN, SCALED = SERIES[:4]
OVERLAP = 0.9
"""Height of the tallest bar of a head's histogram, in rows."""
TITLE_PAD = 30
"""Points between a column's title and its first panel, which leave room for the memory axis and the legend."""


def draw_inspection(heads: Sequence[HeadNumbers], title: str) -> str:
    """Return a self-contained SVG document with a title.

    Each layer has a row of three panels with one line per key head: the histogram of -log gamma over tokens (bins of
    equal logarithmic width), that of beta, and the median and range of the sampled tokens' condition numbers.
    """
    layers = [(layer, list(group)) for layer, group in groupby(heads, key=lambda head: head.layer)]
    rows = [len(group) for _, group in layers]

    def draw(figure: Any) -> None:
        panels = figure.subplots(
            len(layers), 3, sharex="col", squeeze=False, gridspec_kw={"height_ratios": [count + 1.2 for count in rows]}
        )
        for (layer, group), row in zip(layers, panels, strict=True):
            _layer(row, layer, group)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        _axes(panels, heads)

    return draw_svg_file(draw, (10.5, 1.1 + sum(0.55 + 0.32 * count for count in rows)), title)


def _layer(row: Any, layer: int, group: list[HeadNumbers]) -> None:
    """Draw the three panels of a layer."""
    for place, head in enumerate(group):
        _ridge(row[0], place, FORGET_EDGES, head.forget_counts, FORGET)
        _ridge(row[1], place, INPUT_EDGES, head.input_counts, INPUT)
        if head.condition:
            for values, shift, colour in ((head.condition, -0.16, PLAIN), (head.scaled, 0.16, SCALED)):
                low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
                row[2].plot([low, high], [place + shift] * 2, color=colour, linewidth=2, alpha=0.5)
                row[2].plot([middle], [place + shift], "o", color=colour, markersize=4)
    if not any(head.condition for head in group):
        row[2].text(0.5, 0.5, "solves nothing", transform=row[2].transAxes, ha="center", va="center", color=MUTED)
    row[0].set_ylabel(f"layer {layer}, {group[0].mixer}", fontsize=9, fontweight="bold")
    for axes in row:
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_yticks(range(len(group)), [f"head {head.head}" for head in group])
        axes.set_ylim(len(group) - 0.4, -1.0)


def _ridge(axes: Any, place: int, edges: np.ndarray, counts: list[int], colour: str) -> None:
    """Draw one head's histogram on its line, scaled so that the fullest bin of every head has the same height."""
    height = OVERLAP * np.asarray(counts) / max(1, *counts)
    axes.stairs(place - height, edges, baseline=place, fill=True, color=colour, alpha=0.6)
    axes.axhline(place, color=GRID, linewidth=0.6)


def _axes(panels: Any, heads: Sequence[HeadNumbers]) -> None:
    """Label the columns: titles above the first row, axis labels below the last."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:,.5g}")
    forget, inputs, condition = panels[0]
    filled = np.flatnonzero(np.sum([head.forget_counts for head in heads], axis=0))
    forget.set_xscale("log")
    forget.set_xlim(FORGET_EDGES[filled[0]], FORGET_EDGES[filled[-1] + 1])
    above = forget.secondary_xaxis("top", functions=(_inverse, _inverse))
    above.set_xlabel("memory 1 / -log γ, tokens", color=MUTED)
    above.spines["top"].set_visible(False)
    forget.set_title("Forget gate γ", y=1, pad=TITLE_PAD)
    inputs.set_xlim(0, 1)
    inputs.set_title("Input gate β", y=1, pad=TITLE_PAD)
    condition.set_title("Condition numbers", y=1, pad=TITLE_PAD)
    logarithmic = [forget.xaxis, above.xaxis]
    if any(head.condition for head in heads):
        condition.set_xscale("log")
        condition.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        logarithmic.append(condition.xaxis)
        handles = [
            condition.plot([], [], "o", color=colour, markersize=4, label=label)[0]
            for colour, label in ((PLAIN, "H + ridge"), (SCALED, "ridge-scaled"))
        ]
        condition.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.03, 0.98), ncols=2, handletextpad=0.1)
    for axis in logarithmic:
        axis.set_major_formatter(plain)
        axis.set_minor_locator(NullLocator())
    panels[-1][0].set_xlabel("-log γ of a token (right: forgets more)")
    panels[-1][1].set_xlabel("β of a token")
    panels[-1][2].set_xlabel("dot: median token, line: 5 to 95 %")


def _inverse(x: Any) -> Any:
    return 1.0 / np.maximum(np.asarray(x, dtype=float), 1e-300)

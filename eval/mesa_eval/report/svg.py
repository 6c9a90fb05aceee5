"""Draw with matplotlib into inline SVG: text stays text, and every colour is a variable of the page.

Matplotlib draws with marker colours (`INK`, `SERIES` ...) that are then replaced by CSS variables, so a figure follows
the page from light to dark and onto paper. The page's two palettes keep a contrast of 3 to their ground and stay apart
for readers who do not see red and green; every series has a marker of its own as well.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def series_colour(index: int) -> str:
    """Return the marker colour of the model at an index; after eight models colours repeat."""
    return SERIES[index % len(SERIES)]


def series_marker(index: int) -> str:
    """Return the marker of the model at an index."""
    return MARKERS[index % len(MARKERS)]


def draw_svg(draw: Callable[[Figure], None], size: tuple[float, float], label: str) -> str:
    """Run a drawing and return an `<svg>` element that refers to nothing outside and to no fixed colour.

    `label` says in words what is drawn, for readers who do not see it; it must differ between figures of a page.
    """
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
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)

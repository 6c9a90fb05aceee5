"""Draw SVG figures with matplotlib in one style: text stays text, and colours have names.

Matplotlib draws with marker colours (`INK`, `SERIES` ...). In a figure of a page they are then replaced by CSS
variables, so that they follow the page from light to dark and onto paper; in a separate file, by the light page's
colours. Both palettes have a contrast of 3 to their background and differ for readers who do not see red and green;
every series also has its own marker.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{number:02x}" for number in range(1, 9))
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
"""Marker colour -> the name of its CSS variable."""
LIGHT = {
    "ink": "#1d2126",
    "muted": "#5d656e",
    "grid": "#dcdfe3",
    "series-1": "#1b62ad",
    "series-2": "#c2560c",
    "series-3": "#0f8a78",
    "series-4": "#a8468f",
    "series-5": "#8a7000",
    "series-6": "#6a4fc0",
    "series-7": "#7a2e1d",
    "series-8": "#61666d",
}
"""Name -> colour in a separate file."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
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
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = (
    (0, (5, 3)),
    (0, (1.5, 2.5)),
    (0, (5, 2, 1, 2)),
    (0, (9, 3)),
    (0, (2, 1.5, 6, 1.5)),
    (0, (12, 2, 2, 2, 2, 2)),
    (0, (1, 6)),
)


def series_colour(index: int) -> str:
    """Return the marker colour of the model at an index; after eight models colours repeat."""
    return SERIES[index % len(SERIES)]


def series_marker(index: int) -> str:
    """Return the marker of the model at an index."""
    return MARKERS[index % len(MARKERS)]


def reference_dash(index: int) -> Any:
    """Return the dash pattern of a reference line, such as a published value or a guess, at an index."""
    return DASHES[index % len(DASHES)]


def plain_ticks(*axes: Any) -> None:
    """Label the ticks of logarithmic x or y axes with plain numbers, the powers alone."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def draw_svg(draw: Callable[[Figure], None], size: tuple[float, float], label: str) -> str:
    """Run a drawing and return a self-contained `<svg>` element whose colours are CSS variables.

    `label` describes the drawing for screen readers; it must be unique on a page.
    """
    text = _saved(draw, size, label, ground="none")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: bold ([\d.]+)px [^;\"]*", r"font-weight: 600; font-size: \1px", text)
    for marker, name in NAMES.items():
        text = text.replace(marker, f"var(--{name})")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)


def draw_svg_file(draw: Callable[[Figure], None], size: tuple[float, float], label: str) -> str:
    """Run a drawing and return a self-contained SVG document in the light page's colours."""
    text = _saved(draw, size, label, ground="white")
    for marker, name in NAMES.items():
        text = text.replace(marker, LIGHT[name])
    return text


def _saved(draw: Callable[[Figure], None], size: tuple[float, float], label: str, ground: str) -> str:
    """Return a drawing as matplotlib writes it, in marker colours, with its label."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label, "savefig.facecolor": ground}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue().replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)

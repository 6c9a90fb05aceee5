"""Terminal tables of an inspection: gates, linear systems, and reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mesalm.lab.inspection.gate_statistics import HeadNumbers
from mesalm.lab.inspection.inspection import Inspection
from mesalm.lab.inspection.reach import BINDS, LAGS, Reach
from mesalm.wording import plural

Row = tuple[str, ...]


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print the tables, one row per layer and head, then the text used and the meaning of the columns."""
    out = console or Console()
    out.print(table_of("Gates", GATES, inspection.heads))
    solved = [head for head in inspection.heads if head.ridge is not None]
    if solved:
        out.print(table_of("Systems, (H + ridge) x = q", SYSTEMS, solved))
    out.print(table_of("Reach, shares in percent", REACH, inspection.reach))
    read = f"{plural(inspection.windows, 'window')} of {inspection.length} tokens"
    lines = [
        f"{read}, {inspection.text['from']}, on {inspection.device}",
        "head: LAYER.HEAD; memory: -1 / mean log γ, in tokens",
        "long: share of 64-token chunks over which more than 1/16 is kept",
        "rank: effective rank of the keys gathered late in a window, exp of the entropy of H's eigenvalues",
    ]
    if solved:
        lines.append("condition: of H + ridge at tokens of each window's last quarter, median and 95 %")
        lines.append("dim: effective dimension of the ridge regression, tr H (H + ridge)^-1")
        lines.append("ridge: smallest, mean and largest over the head's dimensions")
        lines.append("scaled: the same for ridge^-1/2 H ridge^-1/2 + 1, the matrix that the solver uses")
        lines.append(f"steps: mean over chunks of the slowest token's steps; tolerance {inspection.tolerance:g}")
    lines.append("reach: the read-out's absolute weights by distance in tokens, late in a window")
    lines.append("key taps: absolute weights of the keys' convolution by distance")
    lines.append(f"binds: at least {100 * BINDS:.0f} % one token back, in the read-out or in the keys")
    for line in [*lines, *inspection.notes]:
        out.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def gate_cells(head: HeadNumbers) -> tuple[str, ...]:
    """Return the cells of a head's row in the table of gates."""
    memory = "endless" if head.memory is None else f"{head.memory:,.{0 if head.memory >= 100 else 1}f}"
    return (
        f"{head.layer}.{head.head}",
        f"{head.gamma:.4f}",
        *(f"{value:.3g}" for value in head.log_gamma),
        memory,
        f"{head.beta:.3f}",
        f"{100 * head.long_chunks:.0f} %",
        f"{head.rank:.1f}",
    )


def system_cells(head: HeadNumbers) -> tuple[str, ...]:
    """Return the cells of a head's row in the table of systems; the head must belong to a mesa layer."""
    assert head.ridge is not None
    return (
        f"{head.layer}.{head.head}",
        *(f"{value:.2f}" for value in head.ridge),
        *_median_and_high(head.condition),
        *_median_and_high(head.scaled),
        "-" if head.dimension is None else f"{head.dimension:.1f}",
        "-" if head.steps is None else f"{head.steps:.1f}",
    )


def reach_cells(head: Reach) -> tuple[str, ...]:
    """Return the cells of a head's row in the table of reach."""
    taps = ["-"] if head.key_taps is None else [f"{100 * share:.0f}" for share in head.key_taps]
    return (
        f"{head.layer}.{head.head}",
        head.mixer,
        *(f"{100 * share:.0f}" for share in head.lags),
        " ".join(taps),
        "binds" if head.binds else "",
    )


GATES = (
    ("head", "mean γ", "log γ 5 %", "50 %", "95 %", "memory", "mean β", "long", "rank"),
    gate_cells,
)
SYSTEMS = (
    ("head", "ridge", "mean", "most", "condition", "95 %", "scaled", "95 %", "dim", "steps"),
    system_cells,
)


REACH = (
    (
        *("head", "mixer"),
        *(str(first) if first + 1 == end else f"{first}-{end - 1}" for first, end in pairwise(LAGS)),
        *(f"{LAGS[-1]}+", "key taps", ""),
    ),
    reach_cells,
)


def table_of(title: str, kind: tuple[tuple[str, ...], Callable[[Any], Row]], heads: Sequence[Any]) -> Table:
    """Make a table of at most 80 columns with one row per head, named LAYER.HEAD, and a line between layers."""
    headings, cells = kind
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, head in enumerate(heads):
        last = place + 1 == len(heads) or heads[place + 1].layer != head.layer
        table.add_row(*cells(head), end_section=last)
    return table


def _median_and_high(values: list[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    median, high = np.quantile(values, (0.5, 0.95))
    return f"{median:.3g}", f"{high:.3g}"

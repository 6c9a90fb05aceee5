"""Draw runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.words import figure_to_write

HELP = "plot the losses, learning rates and speeds of runs in one figure"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm plot`."""
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, finished or not")
    command.add_argument(
        "--out", type=figure_to_write, default=Path("curves.svg"), metavar="FILE", help="default curves.svg"
    )


def run(options: argparse.Namespace) -> None:
    """Plot the journals of runs in an SVG file."""
    from mesalm.train.curves import plot

    print(f"drawn: {plot([Path(run) for run in options.runs], options.out)}")

"""Write results down: a table for people, JSON lines for programs, and on which machine it was."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 150
"""Columns of a table that goes into a file."""


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """Make a program's parser; its docstring is the help, the first line before the options and the rest behind."""
    first, _, rest = (text or "").partition("\n")
    return argparse.ArgumentParser(description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)


def read_arguments(
    parser: argparse.ArgumentParser, words: list[str] | None, usual: Mapping[str, tuple[Any, Any]]
) -> argparse.Namespace:
    """Add what all programs that measure take, and read the command line.

    usual: what an option that is not given is, and what it is with --quick.
    """
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines are appended here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, unless they are given: does it run?")
    arguments = parser.parse_args(words)
    for name, values in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values[arguments.quick])
    return arguments


def run_program(name: str, run: Callable[[argparse.Namespace], object], arguments: argparse.Namespace) -> int:
    """Run a program; return 0, or 2 after one line about input that is wrong."""
    try:
        run(arguments)
    except (ValueError, FileNotFoundError) as trouble:
        print(f"{name}: {trouble}", file=sys.stderr)
        return 2
    return 0


def describe_machine(device: str) -> dict[str, Any]:
    """Describe what was measured on: processor or card, cores, threads, versions, and how busy it was beforehand."""
    described: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if torch.device(device).type == "cuda":
        described["card"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
        described["matmul_precision"] = torch.get_float32_matmul_precision()
    return described


def describe_run(program: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Set the threads asked for; return what every JSON line says of its run: program, commit, machine, arguments."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine = describe_machine(arguments.device)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    given = {name: str(x) if isinstance(x, Path) else x for name, x in vars(arguments).items()}
    return {"program": program, "commit": commit(), "machine": machine, "arguments": given}


def _processor() -> str:
    """Name the processor, with its family and model where the name says little."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor() or "unknown"
    if "model name" not in fields:
        return platform.processor() or "unknown"
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def commit() -> str | None:
    """Name the commit of this checkout, with "+changes" where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = ask("rev-parse", "HEAD")
    return None if head is None else head + ("+changes" if ask("status", "--porcelain") else "")


def append_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file of JSON lines, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, allow_nan=False) + "\n")


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print a table, its first column to the left and the others to the right, and notes below it."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    looks: dict[str, Any] = {
        "title_justify": "left",
        "title_style": "bold",
        "header_style": "bold",
        "padding": (0, 1, 0, 0),
    }
    table = Table(title=title, box=box.SIMPLE_HEAD, **looks)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def show_lines(
    title: str,
    columns: Mapping[str, Callable[[dict[str, Any]], str]],
    lines: Sequence[dict[str, Any]],
    notes: Iterable[str] = (),
) -> None:
    """Print a table of JSON lines: by heading, what writes a line's cell."""
    show(title, list(columns), [[write(line) for write in columns.values()] for line in lines], notes)


def milliseconds(spread: Mapping[str, float]) -> str:
    """Write the median of a spread and, below it, its quartiles, in milliseconds."""
    median, lower, upper = (_three(1e3 * spread[name]) for name in ("median", "lower", "upper"))
    return f"{median}\n{lower}-{upper}"


def number(x: float | None, scale: float = 1.0) -> str:
    """Write a number with three digits, or a dash."""
    return "-" if x is None else _three(x * scale)


def error(x: float | None) -> str:
    """Write an error with two digits, or a dash."""
    return "-" if x is None else f"{x:.1e}"


def share(x: float | None) -> str:
    """Write a share in per cent, or a dash."""
    return "-" if x is None else f"{_three(100 * x)} %"


def _three(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"

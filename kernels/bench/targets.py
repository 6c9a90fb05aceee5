"""Hold the figures of `gpu_session.py` against what was aimed at: which targets are met, missed, or not measured?

python kernels/bench/targets.py gpu-results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import records

Line = dict[str, Any]
OURS, PEER, SOFTMAX = "mesa", "fla", "softmax"


@dataclass(frozen=True)
class Target:
    """What is aimed at and by which step it is measured.

    find: from that step's JSON lines by (length, variant's word), the figure and whether it is good enough; None where
    a line is missing.
    """

    aim: str
    step: str
    find: Callable[[dict[tuple[int, str], Line]], tuple[str, bool] | None]


def read_lines(file: Path) -> dict[tuple[int, str], Line]:
    """Read a step's last JSON line by length and variant; none where the step was not run."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(line["case"]["length"], line["variant"].partition("@")[0]): line for line in lines}


def find_lines(folder: Path, step: str) -> dict[tuple[int, str], Line]:
    """Read a step's lines; those of the size that is aimed at after tuning, where that was done."""
    tuned = read_lines(folder / "tuned.jsonl") if step == "aim" else {}
    return tuned or read_lines(folder / f"{step}.jsonl")


def _pair(lines: dict[tuple[int, str], Line], other: str) -> list[tuple[int, Line, Line]]:
    """Give, by length, our line and another variant's of the same case."""
    lengths = sorted({length for length, _ in lines})
    both = [(length, lines.get((length, OURS)), lines.get((length, other))) for length in lengths]
    return [(length, one, two) for length, one, two in both if one is not None and two is not None]


def _milliseconds(line: Line) -> float:
    return 1e3 * float(line["forward_backward_s"]["median"])


def _speed(lines: dict[tuple[int, str], Line]) -> tuple[str, bool] | None:
    for _, ours, peer in _pair(lines, PEER):
        times = _milliseconds(peer) / _milliseconds(ours)
        return f"{times:.2f} times", times >= 3.0
    return None


def _time(lines: dict[tuple[int, str], Line]) -> tuple[str, bool] | None:
    for (_, word), line in lines.items():
        if word == OURS:
            return f"{_milliseconds(line):.2f} ms", _milliseconds(line) < 6.0
    return None


def _error(kind: str) -> Callable[[dict[tuple[int, str], Line]], tuple[str, bool] | None]:
    def find(lines: dict[tuple[int, str], Line]) -> tuple[str, bool] | None:
        for _, ours, peer in _pair(lines, PEER):
            if ours["errors"] and peer["errors"]:
                mine, theirs = ours["errors"][kind], peer["errors"][kind]
                return f"{mine:.1e} against {theirs:.1e}", mine <= theirs / 3.0
        return None

    return find


def _memory(lines: dict[tuple[int, str], Line]) -> tuple[str, bool] | None:
    for _, ours, peer in _pair(lines, PEER):
        if ours["peak_bytes"] and peer["peak_bytes"]:
            mine, theirs = (line["peak_bytes"]["both"] / 2**20 for line in (ours, peer))
            return f"{mine:.0f} MiB against {theirs:.0f}", mine <= theirs
    return None


def _crossing(lines: dict[tuple[int, str], Line]) -> tuple[str, bool] | None:
    ratios = [(length, _milliseconds(two) / _milliseconds(one)) for length, one, two in _pair(lines, SOFTMAX)]
    if not any(length >= 8192 for length, _ in ratios):
        return None
    words = ", ".join(f"{times:.2f} at {length:,}" for length, times in ratios)
    return f"times faster: {words}", all(times > 1.0 for length, times in ratios if length >= 8192)


TARGETS = (
    Target("both passes at least 3 times faster than the peer's kernel", "aim", _speed),
    Target("both passes under 6 ms", "aim", _time),
    Target("output error at most a third of the peer's", "aim", _error("output")),
    Target("gradient error at most a third of the peer's", "aim", _error("gradient")),
    Target("the same at upstream gradients of 1e-6", "tiny-upstream", _error("gradient")),
    Target("peak memory at most the peer's", "aim", _memory),
    Target("faster than FlashAttention from 8,192 tokens on", "lengths", _crossing),
)


def show_targets(folder: Path) -> None:
    """Print a row a target: what was aimed at, what was found, and whether that is good enough."""
    rows = []
    for target in TARGETS:
        found = target.find(find_lines(folder, target.step))
        figure, verdict = ("not measured", "") if found is None else (found[0], "met" if found[1] else "missed")
        rows.append((target.aim, figure, verdict, target.step))
    records.show("targets", ("aim", "found", "verdict", "step"), rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("targets: give the folder that gpu_session.py wrote to")
    show_targets(Path(sys.argv[1]))

"""Measure time, peak memory and the machine's own limits."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spread:
    """The median, the quartiles and the least of repeated measurements, in seconds."""

    median: float
    lower: float
    upper: float
    least: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Summarise measurements; at least one."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], seconds[0], 1)
        lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(middle, lower, upper, min(seconds), len(seconds))


def wait_for(device: str) -> None:
    """Wait until a device has done all it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def time_once(action: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Run `action` once and return its seconds by a clock; on CUDA between two events on the stream."""
    if torch.device(device).type != "cuda":
        start = clock()
        action()
        return clock() - start
    wait_for(device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    actions: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Time actions turn by turn, A B C A B C, so that a machine that slows down slows all of them down.

    The garbage collector runs before the first measurement and not again until the last.
    """
    for _ in range(warmup):
        for action in actions.values():
            action()
    wait_for(device)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, action in actions.items():
                seconds[name].append(time_once(action, device, clock))
    finally:
        if enabled:
            gc.enable()
    return {name: Spread.of(taken) for name, taken in seconds.items()}


def large_product(dtype: torch.dtype, device: str, quick: bool = False) -> float:
    """Measure the operations per second of one large product, the machine's peak."""
    size = 256 if quick else 8192 if torch.device(device).type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    spread = interleave({"": lambda: torch.matmul(left, right, out=out)}, 3 if quick else 10, 2, device)[""]
    return 2.0 * size**3 / spread.least


def copy_rate(device: str, quick: bool = False) -> float:
    """Measure the bandwidth of a device in bytes per second, read and written ones, by copying a large block."""
    size = 1 << 20 if quick else 1 << 30 if torch.device(device).type == "cuda" else 1 << 28
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    spread = interleave({"": lambda: target.copy_(source)}, 3 if quick else 10, 2, device)[""]
    return 2.0 * size / spread.least


def peak_memory(action: Callable[[], object], device: str) -> int | None:
    """Measure the bytes that `action` needs at its peak beyond what was held before it; None where nobody counts.

    On CUDA the allocator's own count. On a CPU the peak of the process's resident memory, which Linux lets a process
    set back; so this belongs into a fresh process, warmed up on something small: see `peak_of_variant`.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        wait_for(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")
        before = _status("VmRSS:")
        action()
        return max(0, _status("VmHWM:") - before)
    return None


def _status(field: str) -> int:
    """Read a size of this process from Linux, in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def ratio(above: Spread | None, below: Spread | None) -> float | None:
    """Divide one median by another; None where either is missing."""
    return None if above is None or below is None else above.median / below.median

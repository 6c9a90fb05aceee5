"""Estimate the time and memory that measuring a model takes, by opening it and running a few batches."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from mesa_eval.reading.batches import Batch
from mesa_eval.reading.model_source import ModelSource
from mesa_eval.reading.scoring import Scorer

TIMED_SECONDS = 2.0  # at least this long, or so many batches, whichever comes first
TIMED_BATCHES = 3
SHORT = 16  # tokens of a short row, which takes about as long as an empty forward pass
WRITTEN = 8


@dataclass(frozen=True)
class Forecast:
    """A model's measured costs: seconds per forward pass, per token read and per token written; peak bytes.

    peak_bytes: weights and the largest batch; on a GPU torch's peak allocation, on a CPU the growth of the
    process, which may keep memory of a model measured before.
    """

    batch_seconds: float
    token_seconds: float
    step_seconds: float
    peak_bytes: int

    def seconds(self, batches: int, tokens: int, steps: int) -> float:
        """Return the seconds of `batches` forward passes over `tokens` tokens and of `steps` generated tokens."""
        return batches * self.batch_seconds + tokens * self.token_seconds + steps * self.step_seconds


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def forecast(
    source: ModelSource, window: int, device: str, batch_tokens: int, trust_remote_code: bool = False, *, held: int
) -> Forecast:
    """Open a model and time it on random tokens: full batches at this window, short rows, and generation.

    held: the bytes that the process held before the first model, see `resident_bytes`. Everything is run once before
    it is timed. Raises ValueError like `Scorer.open`.
    """
    with _Peak() as process:
        scorer = Scorer.open(
            source,
            device=device,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            quiet=True,
        )
        generator = np.random.default_rng(0)

        def rows(count: int, length: int) -> list[list[int]]:
            return generator.integers(0, scorer.vocab_size, (count, length + 1)).tolist()

        count = max(1, scorer.budget() // window)
        whole = _seconds(lambda: scorer.token_scores(rows(count, window)))
        short = _seconds(lambda: scorer.token_scores(rows(1, min(SHORT, window))))
        step = _step_seconds(scorer, rows(1, max(1, window // 2))) if scorer.writes() else 0.0
    token = max(0.0, whole - short) / max(1, count * window - SHORT)
    on_gpu = torch.device(scorer.device).type == "cuda"
    peak = torch.cuda.max_memory_allocated(scorer.device) if on_gpu else process.bytes - held
    return Forecast(short, token, step, peak)


def _step_seconds(scorer: Scorer, rows: Sequence[Sequence[int]]) -> float:
    """Return the seconds for generating one more token after a row."""

    def write(most: int) -> int:
        return len(scorer.continue_batches([Batch((0,))], rows, [most], "\n", "")[0])

    more = write(WRITTEN + 1) - 1  # fewer where the model ends its line
    long, one = _seconds(lambda: write(WRITTEN + 1)), _seconds(lambda: write(1))
    return max(0.0, long - one) / max(1, more)


def _seconds(read: Callable[[], object]) -> float:
    """Return the median time of a few calls, after one that warms up."""
    read()
    times: list[float] = []
    while len(times) < TIMED_BATCHES and sum(times) < TIMED_SECONDS:
        began = time.perf_counter()
        read()  # scores come back as NumPy arrays, so a GPU has finished
        times.append(time.perf_counter() - began)
    return float(np.median(times))


class _Peak:
    """Measures the peak memory of the process inside the context; on a GPU torch's counter is reset."""

    def __enter__(self) -> _Peak:
        gc.collect()  # the model before
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.bytes = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, resident_bytes())

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()

"""The progress of a run: counters, speed and time left, shown as a live bar or as plain lines."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers.utils import logging


@dataclass
class Tally:
    """The counters of a run, saved in its checkpoints. ``ended``: whether training ended early by `enough`."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan
    window_loss: float = 0.0
    window_steps: int = 0
    window_tokens: int = 0
    ended: bool = False

    def add(self, tokens: int) -> None:
        """Count one more step."""
        self.step += 1
        self.tokens += tokens
        self.window_tokens += tokens

    def add_loss(self, loss: float) -> None:
        """Count the loss of one more step, among the mean's only if it is finite."""
        self.loss = loss
        if math.isfinite(loss):
            self.window_loss += loss
            self.window_steps += 1

    @property
    def mean_loss(self) -> float:
        """Return the mean of the window's finite losses, NaN without any."""
        return self.window_loss / self.window_steps if self.window_steps else math.nan

    def open_window(self) -> None:
        """Reset the sums from which the next logged step is averaged."""
        self.window_loss, self.window_steps, self.window_tokens = 0.0, 0, 0


class Speedometer:
    """Tokens per second over the last steps of a run, and the time left."""

    def __init__(
        self, earlier_seconds: float = 0.0, window: int = 50, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start the clock; ``earlier_seconds`` is the run's time before it was resumed."""
        self._clock = clock
        self._earlier = earlier_seconds
        self._start = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._start, 0)], maxlen=window + 1)

    def step(self, tokens: int) -> None:
        """Record the end of an optimiser step over this many tokens."""
        self._marks.append((self._clock(), self._marks[-1][1] + tokens))

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on training steps, such as validation, from the speed."""
        shifted = [(moment + seconds, tokens) for moment, tokens in self._marks]
        self._marks = deque(shifted, maxlen=self._marks.maxlen)

    @property
    def seconds(self) -> float:
        """Return the seconds of the run, including validation, checkpoints and the time before it was resumed."""
        return self._earlier + self._clock() - self._start

    @property
    def tokens_per_second(self) -> float:
        """Return the speed over the last steps, 0 before the first step has ended."""
        moment, tokens = self._marks[-1]
        earlier_moment, earlier_tokens = self._marks[0]
        elapsed = moment - earlier_moment
        return (tokens - earlier_tokens) / elapsed if elapsed > 0 else 0.0

    def left(self, steps: int) -> float | None:
        """Return the seconds that ``steps`` more steps take at the current speed, None if unknown."""
        if len(self._marks) < 2:
            return None
        return steps * (self._marks[-1][0] - self._marks[0][0]) / (len(self._marks) - 1)


def clock_text(seconds: float | None) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``; ``-:--`` when it is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _StandardError:
    """The standard error as a file that drops what cannot be written.

    On Ctrl-C a reader such as tee ends first, and a closed terminal takes nothing more; the run still saves.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    @property
    def _file(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # while a bar is shown, rich stands in between


class Display:
    """A display of a run's steps, loss, tokens per second, time left, gates and solver; silent if not enabled.

    On a terminal it is a bar; elsewhere, as in a log file or with TERM=dumb, one line per logged step.
    """

    def __init__(self, name: str, steps: int, *, enabled: bool = True, console: Console | None = None) -> None:
        self._name = name
        self._steps = steps
        self.enabled = enabled
        self._console = console or Console(file=cast(IO[str], _StandardError()), highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._facts = ""

    def __enter__(self) -> Self:
        if self.enabled and self._console.is_interactive:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._name, total=self._steps, state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(
        self,
        step: int,
        loss: float,
        tokens_per_second: float,
        left: float | None,
        epochs: float | None = None,
        *,
        logged: Mapping[str, Any] | None = None,
    ) -> None:
        """Show the state after ``step`` steps; ``loss`` in nats, ``left`` in seconds, ``epochs`` passes over the data.

        ``logged``: the step's line in the journal, None if it has none. Without a terminal, only logged steps are
        printed; on a terminal, their facts about gates and solver are shown until the next.
        """
        if not self.enabled:
            return
        state = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {clock_text(left)} left"
        if epochs is not None:
            state = f"epoch {epochs:.2f}  {state}"
        if logged is not None:
            self._facts = _facts(logged)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, state=f"{state}\n{self._facts}".rstrip())
        elif logged is not None:
            self._console.print(
                f"{self._name}: step {step}/{self._steps}  {state}  {self._facts}".rstrip(), markup=False
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            self._console.print(text, markup=False)


def _facts(fields: Mapping[str, Any]) -> str:
    """Return the facts about utilisation, gates and solver in a step's journal line, in a few words."""
    words = {
        "mfu": "MFU {:.1%}",
        "mean_forget_gate": "forget gate {:.3f}",
        "saturated_forget_gates": "{:.0%} saturated",
        "solver_steps": "solver {:.1f} steps",
        "solver_residual": "residual {:.1e}",
    }
    return "  ".join(text.format(fields[name]) for name, text in words.items() if fields.get(name) is not None)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which would disturb the output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def event_line(step: int, event: str, fields: Mapping[str, Any]) -> str:
    """Return an event's fields in one line."""
    shown = (f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items())
    return "  ".join([f"step {step}", event, *shown])

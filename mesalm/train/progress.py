"""Showing how a run goes: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers.utils import logging

from mesalm.train.meters import clock_text


class Display:
    """A display of a run's steps, loss, tokens per second, time left, gates and solver; silent if not enabled.

    On a terminal that is a bar; elsewhere, as in a log file or where TERM is dumb, a line for each step that is logged.
    """

    def __init__(self, name: str, steps: int, *, enabled: bool = True, console: Console | None = None) -> None:
        self._name = name
        self._steps = steps
        self.enabled = enabled
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
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

        ``logged``: the journal's line of the step, None if it has none. Such a step gets a line where there is no
        terminal; on one, what it says of gates and solver is shown until the next.
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
    """Return what a step's journal line knows of the hardware's use, gates and solver, in a few words."""
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
    """Hide the bars of transformers, which would break into the lines of a log."""
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

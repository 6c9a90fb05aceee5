"""What a run has done so far, its speed and the time left, as the progress bar and the journal show them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Tally:
    """What a run has done so far; all of it goes into the checkpoint. ``ended``: whether that was enough."""

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
        self.window_steps += 1
        self.window_tokens += tokens

    def add_loss(self, loss: float) -> None:
        """Count the loss of one more step."""
        self.loss = loss
        self.window_loss += loss

    def open_window(self) -> None:
        """Begin to count anew what the next logged step is the mean of."""
        self.window_loss, self.window_steps, self.window_tokens = 0.0, 0, 0


class Speedometer:
    """Tokens per second over the last steps of a run, and the time left."""

    def __init__(
        self, earlier_seconds: float = 0.0, window: int = 50, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begin to measure; ``earlier_seconds`` is the training time of the run before it was resumed."""
        self._clock = clock
        self._earlier = earlier_seconds
        self._start = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._start, 0)], maxlen=window + 1)

    def step(self, tokens: int) -> None:
        """Record that one optimiser step over this many tokens has ended."""
        self._marks.append((self._clock(), self._marks[-1][1] + tokens))

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training steps, such as validation, from the speed."""
        shifted = [(moment + seconds, tokens) for moment, tokens in self._marks]
        self._marks = deque(shifted, maxlen=self._marks.maxlen)

    @property
    def seconds(self) -> float:
        """Return the seconds the run has taken in all its lives, validation and checkpoints included."""
        return self._earlier + self._clock() - self._start

    @property
    def tokens_per_second(self) -> float:
        """Return the speed over the last steps, 0 before the first step has ended."""
        moment, tokens = self._marks[-1]
        earlier_moment, earlier_tokens = self._marks[0]
        elapsed = moment - earlier_moment
        return (tokens - earlier_tokens) / elapsed if elapsed > 0 else 0.0

    def left(self, steps: int) -> float | None:
        """Return the seconds that ``steps`` more steps will take at the present speed, None if unknown."""
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

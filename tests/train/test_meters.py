"""Speed and time left against a clock set by hand, and how they are shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mesalm.train.meters import Speedometer, clock_text
from mesalm.train.progress import Display


def test_speed_and_time_left() -> None:
    now = [100.0]
    speed = Speedometer(earlier_seconds=50.0, window=2, clock=lambda: now[0])
    assert speed.tokens_per_second == 0.0
    assert speed.left(5) is None
    for duration in (10.0, 1.0, 1.0):
        now[0] += duration
        speed.step(200)
    assert speed.tokens_per_second == pytest.approx(200.0)  # the slow first step has left the window
    assert speed.left(5) == pytest.approx(5.0)
    assert speed.seconds == pytest.approx(62.0)


def test_pause_does_not_count_as_slowness() -> None:
    now = [0.0]
    speed = Speedometer(clock=lambda: now[0])
    now[0] += 1
    speed.step(10)
    now[0] += 99
    speed.pause(99)
    now[0] += 1
    speed.step(10)
    assert speed.tokens_per_second == pytest.approx(10.0)
    assert speed.seconds == pytest.approx(101.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0, "0:00"), (61.4, "1:01"), (3599.9, "1:00:00"), (7325, "2:02:05")]
)
def test_clock_text(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize("terminal", [False, True])  # one that is dumb, so that two runs can share it
def test_a_log_has_one_plain_line_for_each_logged_step(terminal: bool) -> None:
    log = io.StringIO()
    console = Console(file=log, force_terminal=terminal, soft_wrap=True, highlight=False, _environ={"TERM": "dumb"})
    with Display("run", 40, console=console) as display:
        for step in range(1, 41):
            display.update(step, 2.0 / step, 1234.5, 40.0 - step, step / 8, logged=step % 20 == 0)
    assert log.getvalue() == (
        "run: step 20/40  epoch 2.50  loss 0.1000  1,234 tokens/s  0:20 left\n"
        "run: step 40/40  epoch 5.00  loss 0.0500  1,234 tokens/s  0:00 left\n"
    )

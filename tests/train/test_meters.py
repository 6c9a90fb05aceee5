"""Speed and time left against a clock set by hand, and how they are shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from mesalm.train.progress import Display, Speedometer, clock_text


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


FACTS = {
    "mfu": 0.4142,
    "mean_forget_gate": 0.93,
    "saturated_forget_gates": 0.12,
    "solver_steps": 7.06,
    "solver_residual": 3e-4,
}
SHOWN = "MFU 41.4%  forget gate 0.930  12% saturated  solver 7.1 steps  residual 3.0e-04"


@pytest.mark.parametrize("terminal", [False, True])  # one that is dumb, so that two runs can share it
def test_a_log_has_one_plain_line_for_each_logged_step(terminal: bool) -> None:
    log = io.StringIO()
    console = Console(file=log, force_terminal=terminal, soft_wrap=True, highlight=False, _environ={"TERM": "dumb"})
    with Display("run", 40, console=console) as display:
        for step in range(1, 41):
            logged = {20: FACTS, 40: dict.fromkeys(FACTS)}.get(step)
            display.update(step, 2.0 / step, 1234.5, 40.0 - step, step / 8, logged=logged)
    assert log.getvalue() == (
        f"run: step 20/40  epoch 2.50  loss 0.1000  1,234 tokens/s  0:20 left  {SHOWN}\n"
        "run: step 40/40  epoch 5.00  loss 0.0500  1,234 tokens/s  0:00 left\n"
    )


def test_a_terminal_keeps_what_the_last_logged_step_said() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with Display("run", 40, console=console) as display:
        display.update(20, 0.5, 1234.5, 20.0, logged=FACTS)
        display.update(21, 0.25, 1234.5, 19.0)
    last = Text.from_ansi(shown.getvalue()).plain.rstrip().splitlines()[-2:]
    assert "21/40" in last[0]
    assert last[0].rstrip().endswith("loss 0.2500  1,234 tokens/s  0:19 left")
    assert last[1].strip() == SHOWN

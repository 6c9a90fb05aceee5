"""Learning-rate schedules: each a function of the step's place in the run, all in one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesalm.train.sections import ScheduleSettings


def warmup_steps(settings: ScheduleSettings, steps: int) -> int:
    """Return the number of warm-up steps of a run of ``steps`` steps, never more than the run has."""
    wanted = settings.warmup_steps
    if wanted is None:
        wanted = round(settings.warmup_fraction * steps)
    return min(wanted, steps)


def constant(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Hold the peak after warm-up."""
    return 1.0


def cosine(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Fall along half a cosine from the peak to ``final_fraction``, reached at the last step."""
    share = (done - warmup) / (steps - warmup)
    return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * share))


def wsd(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Hold the peak, then fall linearly to ``final_fraction`` over the last ``decay_fraction`` of the run."""
    decay = min(round(settings.decay_fraction * steps), steps - warmup)
    left = steps - done
    if left >= decay:
        return 1.0
    return settings.final_fraction + (1 - settings.final_fraction) * left / decay


SCHEDULES: dict[str, Callable[[ScheduleSettings, int, int, int], float]] = {
    "cosine": cosine,
    "wsd": wsd,
    "constant": constant,
}
"""Name -> function(settings, updates done counting this one, warm-up steps, all steps) -> factor in [0, 1]."""


def learning_rate_factor(settings: ScheduleSettings, step: int, steps: int) -> float:
    """Return the learning rate of one optimiser step as a share of the peak.

    ``step`` counts from 0. Warm-up rises linearly and reaches 1 at its last step; cosine and wsd reach
    ``final_fraction`` at step ``steps - 1``. Raises ValueError for a step outside the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step: must be at least 0 and below {steps}, not {step}")
    warmup = warmup_steps(settings, steps)
    done = step + 1
    if done <= warmup:
        return done / warmup
    return SCHEDULES[settings.name](settings, done, warmup, steps)

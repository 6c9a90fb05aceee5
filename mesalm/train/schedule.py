"""Learning-rate schedules and their settings; all schedules are in one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from mesalm.settings import Settings, known


class ScheduleSettings(Settings):
    """The learning rate over the run."""

    name: Annotated[str, known(lambda: SCHEDULES, "a schedule")] = Field(
        default="cosine", description="Shape: cosine, wsd (warm-up, stable, decay) or constant."
    )
    warmup_fraction: float = Field(
        default=0.02, ge=0, le=1, description="Fraction of all steps during which the rate rises linearly from zero."
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="Steps of warm-up; overrides warmup_fraction.")
    final_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate of the last step as a fraction of the peak (cosine, wsd)."
    )
    decay_fraction: float = Field(
        default=0.2, ge=0, le=1, description="Fraction of all steps over which wsd decays linearly at the end."
    )
    decay_steps: int | None = Field(default=None, ge=0, description="Steps of wsd's decay; overrides decay_fraction.")


def check_warmup(settings: ScheduleSettings, steps: int) -> None:
    """Raise ValueError if a run of ``steps`` steps is too short for its warm-up and decay."""
    wanted = settings.warmup_steps
    if wanted is not None and wanted > steps:
        raise ValueError(f"schedule.warmup_steps: {wanted} are more than the run's {steps} steps; give at most {steps}")
    decay = decay_steps(settings, steps) if settings.name == "wsd" else 0
    if warmup_steps(settings, steps) + decay > steps:
        key = "decay_fraction" if settings.decay_steps is None else "decay_steps"
        raise ValueError(
            f"schedule.{key}: {warmup_steps(settings, steps)} steps of warm-up and {decay} of decay are more "
            f"than the run's {steps}; shorten one of the two"
        )


def warmup_steps(settings: ScheduleSettings, steps: int) -> int:
    """Return the number of warm-up steps of a run of ``steps`` steps, never more than the run has."""
    wanted = settings.warmup_steps
    if wanted is None:
        wanted = round(settings.warmup_fraction * steps)
    return min(wanted, steps)


def decay_steps(settings: ScheduleSettings, steps: int) -> int:
    """Return the number of decay steps of a wsd run of ``steps`` steps."""
    return round(settings.decay_fraction * steps) if settings.decay_steps is None else settings.decay_steps


def constant(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Hold the peak after warm-up."""
    return 1.0


def cosine(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Decay along half a cosine from the peak to ``final_fraction`` at the last step."""
    share = (done - warmup) / (steps - warmup)
    return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * share))


def wsd(settings: ScheduleSettings, done: int, warmup: int, steps: int) -> float:
    """Hold the peak, then decay linearly to ``final_fraction`` over the run's `decay_steps`."""
    decay = min(decay_steps(settings, steps), steps - warmup)
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


def agreement(settings: ScheduleSettings, steps: int, others: int, other: ScheduleSettings | None = None) -> int:
    """Return for how many initial steps a run of ``steps`` steps has the same rate as a run of ``others`` steps.

    The other run has the same schedule, or ``other`` if given.
    """
    shared = min(steps, others)
    same = (
        learning_rate_factor(settings, step, steps) == learning_rate_factor(other or settings, step, others)
        for step in range(shared)
    )
    return next((step for step, equal in enumerate(same) if not equal), shared)


def learning_rate_factor(settings: ScheduleSettings, step: int, steps: int) -> float:
    """Return the learning rate of one optimiser step as a fraction of the peak.

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

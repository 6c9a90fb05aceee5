"""Learning-rate schedules at their edges."""

from __future__ import annotations

import pytest

from mesalm.train.schedule import SCHEDULES, ScheduleSettings, learning_rate_factor, warmup_steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_to_one_at_its_last_step(name: str) -> None:
    settings = ScheduleSettings(name=name, warmup_steps=10)
    assert learning_rate_factor(settings, 0, 100) == pytest.approx(0.1)
    assert learning_rate_factor(settings, 4, 100) == pytest.approx(0.5)
    assert learning_rate_factor(settings, 9, 100) == 1.0
    assert learning_rate_factor(settings, 10, 100) <= 1.0


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.25), ("wsd", 0.25), ("constant", 1.0)])
@pytest.mark.parametrize("warmup", [0, 7])
def test_last_step_has_the_final_fraction(name: str, last: float, warmup: int) -> None:
    settings = ScheduleSettings(name=name, warmup_steps=warmup, final_fraction=0.25)
    assert learning_rate_factor(settings, 99, 100) == pytest.approx(last)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    settings = ScheduleSettings(name="cosine", warmup_steps=0, final_fraction=0.0)
    assert learning_rate_factor(settings, 49, 100) == pytest.approx(0.5)


def test_wsd_holds_and_then_falls_linearly() -> None:
    settings = ScheduleSettings(name="wsd", warmup_steps=5, decay_fraction=0.2, final_fraction=0.0)
    assert [learning_rate_factor(settings, step, 100) for step in range(5, 80)] == [1.0] * 75
    assert learning_rate_factor(settings, 80, 100) == pytest.approx(0.95)
    assert learning_rate_factor(settings, 89, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 50])
def test_one_step_and_all_warmup_have_values(name: str, warmup: int) -> None:
    settings = ScheduleSettings(name=name, warmup_steps=warmup, decay_fraction=1.0)
    for steps in (1, 2, 50):
        for step in range(steps):
            assert 0 < learning_rate_factor(settings, step, steps) <= 1


def test_warmup_steps_take_the_place_of_the_fraction() -> None:
    assert warmup_steps(ScheduleSettings(warmup_fraction=0.1), 200) == 20
    assert warmup_steps(ScheduleSettings(warmup_fraction=0.1, warmup_steps=3), 200) == 3
    assert warmup_steps(ScheduleSettings(warmup_steps=300), 200) == 200


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="step"):
        learning_rate_factor(ScheduleSettings(), step, 10)

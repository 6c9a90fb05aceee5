"""A branch: a run that begins at another run's checkpoint and lets the learning rate decay from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesalm.runs import RunFiles, step_of
from mesalm.settings import SettingsError
from mesalm.train.recipe import Recipe
from mesalm.train.run_folder import first_difference, read_run_recipe
from mesalm.train.schedule import agreement, decay_steps, warmup_steps

OF_BRANCH = ("branch_from", "name", "schedule")
"""Settings, beside its length, in which a branch may differ from the run that it leaves."""


def branch(recipe: Recipe, checkpoint: str) -> Recipe:
    """Return the recipe of the run ``<name>-branch-<step>`` that leaves a run at a checkpoint, RUN/step-N, to decay.

    It ends ``schedule.decay_steps`` steps after the checkpoint, by default as many as the run it leaves would decay.
    It is the wsd run of that length. Raises SettingsError where there is no such run, where it is of another recipe,
    or where its learning rate was not that of the branch so far.
    """
    folder = _checkpoint(checkpoint)
    step = step_of(folder) or 0
    left = read_run_recipe(folder.parent.parent)
    if recipe.schedule.name != "wsd":
        raise SettingsError(f"schedule.name: {recipe.schedule.name} has no decay of its own; a branch needs wsd")
    decay = recipe.schedule.decay_steps or decay_steps(recipe.schedule, left.steps)
    if decay == 0:
        raise SettingsError("schedule.decay_steps: a branch needs at least 1 step of decay")
    data = recipe.plain()
    data["schedule"] |= {"warmup_steps": warmup_steps(left.schedule, left.steps), "decay_steps": decay}
    data["train"] |= {"steps": step + decay, "tokens": None}
    if recipe.train.precision == "auto":
        data["train"]["precision"] = left.train.precision  # a run's own says what auto came to
    data |= {"name": f"{recipe.name}-branch-{step}", "branch_from": str(folder)}
    found = Recipe.build(data)
    difference = first_difference(_kept(left), _kept(found))
    if difference is not None:
        key, there, here = difference
        raise SettingsError(f"--branch: {key} is {there!r} in {folder} and {here!r} now; a branch keeps the settings")
    held = agreement(found.schedule, found.steps, left.steps, left.schedule)
    if held < step:
        raise SettingsError(
            f"--branch: the learning rate of {folder} is that of a wsd run before its decay for {held} steps only; "
            "name a checkpoint that is not after them"
        )
    return found


def _kept(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.plain().items() if key not in OF_BRANCH}


def _checkpoint(text: str) -> Path:
    """Return the folder of a checkpoint, given as RUN/step-N or RUN/checkpoints/step-N; N needs no zeros."""
    given = Path(text).expanduser()
    start, _, number = given.name.partition("-")
    run = given.parent.parent if given.parent.name == "checkpoints" else given.parent
    if start != "step" or not number.isdecimal():
        raise SettingsError(f"--branch: {text} names no checkpoint; give RUN/step-N")
    return RunFiles(run.resolve()).checkpoints / f"step-{int(number):08d}"

"""The runs of a command: every arm with every seed, or a branch of an existing run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesalm.files import expanded
from mesalm.runs import RunFiles, step_of
from mesalm.settings import SettingsError
from mesalm.train.recipe import Recipe, load_recipe
from mesalm.train.run_folder import first_difference, read_run_recipe
from mesalm.train.schedule import agreement, decay_steps, warmup_steps
from mesalm.wording import plural

MOST = 1000
"""The largest number of seeds; a larger number is taken for a seed with its comma forgotten."""


def read_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds: ``0,1,2`` means these seeds, ``3`` the three seeds 0, 1 and 2, and ``7,`` the single seed 7.

    Raises SettingsError for anything else, and for a seed given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    if not all(part.isdecimal() for part in parts):
        raise SettingsError(
            f"seeds: {text!r} must be a number of seeds, such as 3, or seeds with commas, such as 0,1,2"
        )
    numbers = tuple(int(part) for part in parts)
    if "," not in text:
        if numbers[0] < 1:
            raise SettingsError(
                "seeds: 0 seeds train nothing; give a number of seeds, or 0, (with a comma) for seed 0 only"
            )
        if numbers[0] > MOST:
            raise SettingsError(f"seeds: {numbers[0]} is too many runs; for seed {numbers[0]} only, add a comma")
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise SettingsError(f"seeds: {text!r} names a seed twice")
    return numbers


def planned_runs(
    name_or_path: str,
    overrides: Sequence[str] = (),
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Recipe]:
    """Return the checked recipes of all requested runs, in the order of training.

    Without ``arms`` every arm of the recipe is trained. With ``seeds`` a run is named ``<name>-<arm>-s<seed>``, and all
    arms of a seed come before the next seed: they share initial random numbers and the order of rows, so interrupted
    runs can still be compared in pairs. Raises SettingsError, also if ``seed`` is set elsewhere too.
    """
    recipe = load_recipe(name_or_path, overrides, check_arms=not arms)
    twice = [arm for arm in arms or () if (arms or ()).count(arm) > 1]
    if twice:
        raise SettingsError(f"--arm: {twice[0]} is given twice; give it once")
    chosen: list[str | None] = [*(arms or recipe.arms)] or [None]
    plain = [load_recipe(name_or_path, overrides, arm=arm) for arm in chosen]
    folders = [run.folder for run in plain]
    for arm, run in zip(chosen, plain, strict=True):
        if folders.count(run.folder) > 1:
            raise SettingsError(f"arms.{arm}: has the same name as another arm, {run.name}; leave out its name")
    if seeds is None:
        return plain
    if any(text.partition("=")[0].strip() == "seed" for text in overrides):
        raise SettingsError("seed: is set although --seeds is given; leave one of the two out")
    for arm in chosen:
        if arm is not None and "seed" in recipe.arms[arm]:
            raise SettingsError(f"arms.{arm}: sets seed, which --seeds sets too; leave one of the two out")
    return [_with_seed(run, seed) for seed in seeds for run in plain]


def plan_line(runs: Sequence[Recipe]) -> str:
    """Return one line on what will be trained: the number of runs, their names, steps and tokens."""
    lengths = [f"{plural(run.steps, 'step')}, {plural(run.planned_tokens, 'token')}" for run in runs]
    count = plural(len(runs), "run")
    if len(set(lengths)) == 1:
        return f"{count} of {lengths[0]}: {', '.join(run.name for run in runs)}"
    return f"{count}: " + "; ".join(f"{run.name} {length}" for run, length in zip(runs, lengths, strict=True))


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return Recipe.build({**recipe.plain(), "name": f"{recipe.name}-s{seed}", "seed": seed})


OF_BRANCH = ("branch_from", "name", "schedule")
"""Settings, besides the length, in which a branch may differ from the original run."""


def branch(recipe: Recipe, checkpoint: str) -> Recipe:
    """Return the recipe of the run ``<name>-branch-<step>``, which branches off a run at a checkpoint, RUN/step-N.

    It starts from that checkpoint and decays the learning rate from there.
    It ends ``schedule.decay_steps`` steps after the checkpoint, by default the number of decay steps of the original
    run, and equals the wsd run of that length. Raises SettingsError if there is no such run, if it has another recipe,
    or if its learning rate so far differs from that of the branch.
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
        data["train"]["precision"] = left.train.precision  # a run's recipe has the value that auto resolved to
    data |= {"name": f"{recipe.name}-branch-{step}", "branch_from": str(folder)}
    found = Recipe.build(data)
    difference = first_difference(_kept(left), _kept(found))
    if difference is not None:
        key, there, here = difference
        raise SettingsError(
            f"--branch: {key} is {there!r} in {folder} and {here!r} now; a branch must keep the settings"
        )
    held = agreement(found.schedule, found.steps, left.steps, left.schedule)
    if held < step:
        raise SettingsError(
            f"--branch: the learning rate of {folder} agrees with the branch for {held} steps only; "
            f"name a checkpoint of at most {held} steps"
        )
    return found


def _kept(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.plain().items() if key not in OF_BRANCH}


def _checkpoint(text: str) -> Path:
    """Return the folder of a checkpoint, given as RUN/step-N or RUN/checkpoints/step-N; N needs no zeros."""
    given = expanded(text)
    start, _, number = given.name.partition("-")
    run = given.parent.parent if given.parent.name == "checkpoints" else given.parent
    if start != "step" or not number.isdecimal():
        raise SettingsError(f"--branch: {text} is not a checkpoint; give RUN/step-N")
    return RunFiles(run.resolve()).checkpoints / f"step-{int(number):08d}"

"""Several runs from one recipe: every arm with every training seed, one after another."""

from __future__ import annotations

from collections.abc import Sequence

from mesalm.settings import SettingsError
from mesalm.train.recipe import Recipe, load_recipe
from mesalm.wording import plural

MOST = 1000
"""The largest number of seeds; a larger one is a seed without its comma."""


def read_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,2`` as those seeds and a lone ``3`` as the three seeds 0, 1 and 2; ``7,`` is the one seed 7.

    Raises SettingsError in one line for anything else, and for a seed given twice.
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
            raise SettingsError("seeds: 0 seeds train nothing; give a number of seeds, or 0, for the one seed 0")
        if numbers[0] > MOST:
            raise SettingsError(f"seeds: {numbers[0]} are too many runs; for the one seed {numbers[0]} add a comma")
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
    """Return the recipe of every run that is asked for, all of them checked, in the order of training.

    Without ``arms`` every arm of the recipe. With ``seeds`` a run is named ``<name>-<arm>-s<seed>``, and all arms of a
    seed come before the next seed: they share its initial random numbers and its order of rows, so that an interrupted
    campaign leaves pairs. Raises SettingsError, one line, also where ``seed`` is set in other places as well.
    """
    recipe = load_recipe(name_or_path, overrides)
    twice = [arm for arm in arms or () if (arms or ()).count(arm) > 1]
    if twice:
        raise SettingsError(f"--arm: {twice[0]} is given twice; give it once")
    chosen: list[str | None] = [*(arms or recipe.arms)] or [None]
    plain = [load_recipe(name_or_path, overrides, arm=arm) for arm in chosen]
    folders = [run.folder for run in plain]
    for arm, run in zip(chosen, plain, strict=True):
        if folders.count(run.folder) > 1:
            raise SettingsError(f"arms.{arm}: is named {run.name}, as another arm is; leave out its name")
    if seeds is None:
        return plain
    if any(text.partition("=")[0].strip() == "seed" for text in overrides):
        raise SettingsError("seed: is set beside --seeds; leave one of the two out")
    for arm in chosen:
        if arm is not None and "seed" in recipe.arms[arm]:
            raise SettingsError(f"arms.{arm}: sets seed, which --seeds sets too; leave one of the two out")
    return [_with_seed(run, seed) for seed in seeds for run in plain]


def plan_line(runs: Sequence[Recipe]) -> str:
    """Return in one line what will be trained: how many runs, their names, steps and tokens."""
    lengths = [f"{plural(run.steps, 'step')}, {plural(run.planned_tokens, 'token')}" for run in runs]
    count = plural(len(runs), "run")
    if len(set(lengths)) == 1:
        return f"{count} of {lengths[0]}: {', '.join(run.name for run in runs)}"
    return f"{count}: " + "; ".join(f"{run.name} {length}" for run, length in zip(runs, lengths, strict=True))


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return Recipe.build({**recipe.plain(), "name": f"{recipe.name}-s{seed}", "seed": seed})

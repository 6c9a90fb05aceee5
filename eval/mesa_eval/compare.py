"""Measure models, or read stored scores, and report the differences from a baseline with 95 % intervals.

Runs of one recipe that differ by their training seed are one arm. Units resampled: documents for text and for loss by
position, random sequences for copying, queries for few-shot tasks. Only bits per byte compares models whose tokenizers
differ; every other row then says why it does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mesa_eval.arms import Arm, find_arms, read_groups
from mesa_eval.reading.processes import join_processes
from mesa_eval.rows import build_comparison
from mesa_eval.scores import ModelCard, Scores
from mesa_eval.suite import make_plan, run_plan


def compare(
    models: Sequence[str],
    suite: str = "quick",
    *,
    texts: Sequence[str] = (),
    split: str = "valid",
    tasks: Sequence[str] = (),
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_tokens: int = 8192,
    baseline: str | None = None,
    arms: Sequence[str] = (),
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Path:
    """Measure models, compare each arm with the baseline, and return the path of `report.html`.

    Arguments as in `mesa_eval.suite.evaluate`; `baseline` is "first", "last" (as None), or the name of an arm, the name
    or argument of a model; `arms` are `NAME=MODEL,MODEL,...` for models that are one arm but whose recipes do not say
    so; `out` is the folder of `report.html`, `report.md`, `report.json` and `scores/` (default `reports/<A>-vs-<B>`).
    Prints tables on the terminal. Raises ValueError in one line for bad input.
    """
    groups, asked = read_groups(arms), named_models(models, arms)
    plan = make_plan(asked, suite, texts, split, tasks, seed, trust_remote_code)
    found = find_arms(
        [_card(source.name, source.argument, source.seed, source.recipe) for source in plan.sources], groups
    )
    find_baseline(found, [source.name for source in plan.sources], asked, baseline)  # before hours of measuring
    folder = Path(out) if out is not None else Path("reports") / "-vs-".join(arm.name for arm in found)
    scores = run_plan(plan, folder, device, batch_tokens, trust_remote_code, quiet)
    if not join_processes(device).main:
        return folder / "report.html"
    return report(scores, folder, baseline=baseline, arms=arms, quiet=quiet)


def named_models(models: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Return the models given by themselves and those in arms, each once."""
    listed = [model for own in read_groups(arms).values() for model in own]
    return [*models, *(model for model in listed if model not in models)]


def report(
    scores: list[Scores],
    folder: Path,
    *,
    baseline: str | None = None,
    arms: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Compare scores that are there already; print the tables, write the report and return its page."""
    from mesa_eval.report.files import write_report
    from mesa_eval.report.tables import print_comparison

    groups = read_groups(arms)
    cards = [item.model for item in scores]
    base = find_baseline(
        find_arms(cards, groups), [card.name for card in cards], [card.argument for card in cards], baseline
    )
    comparison = build_comparison(scores, base, groups=groups)
    if not quiet:
        print_comparison(comparison)
    page = write_report(comparison, folder)
    if not quiet:
        print(f"report: {page}")
    return page


def read_scores(places: Sequence[Path]) -> list[Scores]:
    """Read stored scores: report folders, their `report.json`, or single score files; no model is opened.

    Models keep the order in which they were compared. Raises ValueError in one line for a place that holds no scores,
    for scores of another format, and for two models of one name.
    """
    found = [scores for place in places for scores in _read_place(Path(place).expanduser())]
    names = [item.model.name for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--from-scores: {twice[0]} is there twice; name one place only for each model")
    return found


def _read_place(place: Path) -> list[Scores]:
    whole = place / "report.json" if place.is_dir() else place
    if whole.is_file():
        try:
            data = json.loads(whole.read_text(encoding="utf-8"))
            return [Scores.from_dict(item) for item in data.get("scores", [data])]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{whole}: holds no scores ({type(error).__name__}: {error}); measure again") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{whole}: holds no scores that can be read ({error})") from None
    files = sorted([*place.glob("*.json"), *place.glob("scores/*.json")]) if place.is_dir() else []
    if not files:
        raise ValueError(f"{place}: no scores here; give a report folder, its report.json or files of its scores/")
    return [scores for file in files for scores in _read_place(file)]


def find_baseline(arms: Sequence[Arm], names: Sequence[str], arguments: Sequence[str], baseline: str | None) -> int:
    """Return the index of the baseline among the arms; ValueError if no arm or model has that name or argument."""
    if baseline in (None, "first", "last"):
        return 0 if baseline == "first" else len(arms) - 1
    titles = [arm.name for arm in arms]
    if baseline in titles:
        return titles.index(baseline)
    for known in (list(names), list(arguments)):
        if baseline in known:
            place = known.index(baseline)
            return next(index for index, arm in enumerate(arms) if place in arm.members)
    raise ValueError(f"baseline {baseline!r}: must be 'first', 'last' or one of {', '.join(titles)}")


def _card(name: str, argument: str, seed: int | None, recipe: str) -> ModelCard:
    """Return the little of a model's card that decides its arm, before the model is opened."""
    return ModelCard(name, argument, "", "", 0, "", "", 0, 0, None, seed=seed, recipe=recipe)

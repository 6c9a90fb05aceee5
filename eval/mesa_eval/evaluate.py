"""Measure models, or read stored scores, and report the differences from a baseline with 95 % intervals.

Runs of one recipe that differ only in their training seed are one arm. Resampled units: documents for text and for loss
by position, random sequences for copying, queries for few-shot tasks. With different tokenizers only bits per byte is
compared; every other row shows the reason instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesa_eval.comparison.arms import Arm, find_arms, find_baseline, read_groups
from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.plan import Request, make_plan
from mesa_eval.measures.run import run_plan
from mesa_eval.measures.scores import Scores
from mesa_eval.reading.processes import join_processes
from mesa_eval.report.files import write_report
from mesa_eval.report.tables import print_comparison
from mesa_eval.report.wording import summarise
from mesalm.files import expanded

LONGEST_NAME = 255  # bytes of a folder's name


def evaluate(models: Sequence[str], suite: str = "quick", *, out: Path | None = None, **how: Any) -> list[Scores]:
    """Measure models under one protocol and print a table of the scores.

    models, suite and `how`: the fields of `mesa_eval.measures.plan.Request`. out: a folder for `scores/<model>.json`;
    each finished part is stored at once in `scores/parts/` and not measured again. Under `accelerate
    launch` the processes share each model's batches. Raises ValueError with one line for bad input.
    """
    request = Request(models=models, suite=suite, **how)
    scores = run_plan(make_plan(request), out)
    if not request.quiet and join_processes(request.device).main:
        comparison = build_comparison(scores, differences=False)
        print_comparison(comparison, summarise(comparison))
    return scores


def compare(
    models: Sequence[str],
    suite: str = "quick",
    *,
    out: Path | None = None,
    baseline: str | None = None,
    arms: Sequence[str] = (),
    **how: Any,
) -> Path:
    """Measure models, compare each arm with the baseline, and return the path of `report.html`.

    models, suite and `how`: as in `evaluate`. out: the folder of `report.html`, `report.md`, `report.json` and
    `scores/` (default `reports/<A>-vs-<B>`). baseline: "first", "last" (also if None), the name of an arm, or the name
    or argument of a model. arms: `NAME=MODEL,MODEL,...`, for arms that cannot be recognised from the recipes.
    Prints tables on the terminal. Raises ValueError with one line for bad input.
    """
    request = Request(models=named_models(models, arms), suite=suite, **how)
    plan = make_plan(request)
    found = find_arms(plan.sources, read_groups(arms))
    base = find_baseline(found, plan.sources, baseline)  # before hours of measuring
    folder = Path(out) if out is not None else _usual_folder(found)
    scores = run_plan(plan, folder)
    if not join_processes(request.device).main:
        return folder / "report.html"
    return _write(scores, found, base, folder, request.quiet)


def _usual_folder(arms: Sequence[Arm]) -> Path:
    """Return the default folder, named after the arms; ValueError if the name is too long for file systems."""
    name = "-vs-".join(arm.name for arm in arms)
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"the names of {len(arms)} arms are too long for a folder; name one with --out")
    return Path("reports") / name


def named_models(models: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Return the models given directly and those in arms, each once."""
    listed = [model for own in read_groups(arms).values() for model in own]
    return [*models, *dict.fromkeys(model for model in listed if model not in models)]


def report(
    scores: list[Scores],
    folder: Path,
    *,
    baseline: str | None = None,
    arms: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Compare existing scores: print the tables, write the report and return the path of its page."""
    cards = [item.model for item in scores]
    found = find_arms(cards, read_groups(arms))
    return _write(scores, found, find_baseline(found, cards, baseline), folder, quiet)


def _write(scores: list[Scores], arms: list[Arm], baseline: int, folder: Path, quiet: bool) -> Path:
    comparison = build_comparison(scores, baseline, arms=arms)
    summary = summarise(comparison)
    if not quiet:
        print_comparison(comparison, summary)
    page = write_report(comparison, summary, folder)
    if not quiet:
        print(f"report: {page}")
    return page


def earlier_choice(place: Path) -> tuple[str | None, list[str]]:
    """Return the baseline and the arms of several models of the report at a path; None and none without a report."""
    place = expanded(place)
    file = place / "report.json" if place.is_dir() else place
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    arms = [f"{arm['name']}={','.join(arm['models'])}" for arm in data.get("arms", ()) if len(arm["models"]) > 1]
    return data.get("baseline"), arms


def read_scores(places: Sequence[Path]) -> list[Scores]:
    """Read stored scores from report folders, their `report.json`, or single score files, without opening a model.

    Models keep their order in the comparison. Raises ValueError with one line for a path without scores,
    for scores of another format, for two models of one name, and for a folder whose scores differ from its report.
    """
    found = [scores for place in places for scores in _read_folder(expanded(place))]
    names = [item.model.name for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--from-scores: {twice[0]} is given twice; give one place per model")
    return found


def _read_folder(place: Path) -> list[Scores]:
    """Return the scores at a path, including those measured after a folder's report was written."""
    found = _read_place(place)
    if (place / "report.json").is_file():
        known = {item.model.name: item for item in found}
        for file in sorted(place.glob("scores/*.json")):
            for item in _read_place(file):
                if known.get(item.model.name) != item:
                    raise ValueError(
                        f"{place}: report.json does not hold what scores/{file.name} holds; name {place}/report.json"
                        f" or {place}/scores"
                    )
    return found


def _read_place(place: Path) -> list[Scores]:
    whole = place / "report.json" if place.is_dir() else place
    if whole.is_file():
        try:
            data = json.loads(whole.read_text(encoding="utf-8"))
            report = isinstance(data, dict) and "scores" in data
            return [Scores.from_dict(item) for item in (data["scores"] if report else [data])]
        except (OSError, ValueError) as error:
            raise ValueError(f"{whole}: contains no readable scores ({error})") from None
    files = sorted([*place.glob("*.json"), *place.glob("scores/*.json")]) if place.is_dir() else []
    if not files:
        raise ValueError(f"{place}: no scores here; give a report folder, its report.json or files of its scores/")
    return [scores for file in files for scores in _read_place(file)]

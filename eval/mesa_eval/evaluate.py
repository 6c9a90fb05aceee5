"""Measure models, or read stored scores, and report the differences from a baseline with 95 % intervals.

Runs of one recipe that differ by their training seed are one arm. Units resampled: documents for text and for loss by
position, random sequences for copying, queries for few-shot tasks. Only bits per byte compares models whose tokenizers
differ; every other row then says why it does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mesa_eval.comparison.arms import Arm, find_arms, find_baseline, read_groups
from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.run import run_plan
from mesa_eval.plan import make_plan
from mesa_eval.reading.processes import join_processes
from mesa_eval.report.files import write_report
from mesa_eval.report.tables import print_comparison
from mesa_eval.scores import Scores


def evaluate(
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
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> list[Scores]:
    """Measure models under one protocol and print a table of the scores.

    models: run folders, model folders or Hub names. texts: files to score; without them, the documents of
    `split` of the first run among the models. tasks: built-in names, files or datasets, see
    `mesa_eval.tasks.find_tasks` (none given: the suite's own; "none": no task). out: a folder for
    `scores/<model>.json` and, as soon as each is measured, `scores/parts/`; what lies there already is not measured
    again. Under `accelerate launch` the processes share each model's batches. Raises ValueError in one line for bad
    input.
    """
    plan = make_plan(models, suite, texts, split, tasks, seed, trust_remote_code)
    scores = run_plan(plan, out, device, batch_tokens, trust_remote_code, quiet)
    if not quiet and join_processes(device).main:
        print_comparison(build_comparison(scores, differences=False))
    return scores


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

    Arguments as in `evaluate`; `baseline` is "first", "last" (as None), or the name of an arm, the name
    or argument of a model; `arms` are `NAME=MODEL,MODEL,...` for models that are one arm but whose recipes do not say
    so; `out` is the folder of `report.html`, `report.md`, `report.json` and `scores/` (default `reports/<A>-vs-<B>`).
    Prints tables on the terminal. Raises ValueError in one line for bad input.
    """
    plan = make_plan(named_models(models, arms), suite, texts, split, tasks, seed, trust_remote_code)
    found = find_arms(plan.sources, read_groups(arms))
    base = find_baseline(found, plan.sources, baseline)  # before hours of measuring
    folder = Path(out) if out is not None else Path("reports") / "-vs-".join(arm.name for arm in found)
    scores = run_plan(plan, folder, device, batch_tokens, trust_remote_code, quiet)
    if not join_processes(device).main:
        return folder / "report.html"
    return _write(scores, found, base, folder, quiet)


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
    cards = [item.model for item in scores]
    found = find_arms(cards, read_groups(arms))
    return _write(scores, found, find_baseline(found, cards, baseline), folder, quiet)


def _write(scores: list[Scores], arms: list[Arm], baseline: int, folder: Path, quiet: bool) -> Path:
    comparison = build_comparison(scores, baseline, arms=arms)
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

"""The results of a grid's cells, and their summary ``results.json``, from which a report is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.files import write_text
from mesalm.synthetic.model import build_model
from mesalm.synthetic.recipe import Cell, Setting, SyntheticRecipe, best_rate, planned_cells, planned_count


def cells_folder(recipe: SyntheticRecipe) -> Path:
    """Return the folder that holds a folder for every cell."""
    return recipe.folder / "cells"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results under a folder of cells, by the cells' folder names."""
    found = {path.parent.name: read_result(path.parent) for path in sorted(folder.glob("*/result.json"))}
    return {name: result for name, result in found.items() if result is not None}


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of the cell in a folder, None if it has not ended."""
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_results(recipe: SyntheticRecipe) -> Path:
    """Write ``results.json`` and ``recipe.yaml`` into the grid's folder and return the folder.

    For each setting: arm, point, task, the rates that were swept with their scores, the best of them, and one entry
    per seed at the best rate. A setting without a finished sweep has no ``best_rate`` and no ``runs``; ``missing``
    counts the cells that have not ended.
    """
    results = read_results(cells_folder(recipe))
    cells = [cell for cell in planned_cells(recipe, results) if cell.folder_name in results]
    settings: list[dict[str, Any]] = []
    for setting in recipe.settings():
        mine = [cell for cell in cells if cell.setting == setting]
        swept = [cell for cell in mine if cell.seed in recipe.seeds[: recipe.sweep_seeds]]
        best = None
        if len(swept) == len(recipe.rates(setting)) * len(recipe.seeds[: recipe.sweep_seeds]):
            best = best_rate((cell.rate, results[cell.folder_name]) for cell in swept)
        settings.append(
            {
                "arm": setting.arm,
                "point": setting.point,
                "task": {"name": setting.run.task["name"], **setting.run.build_task().model_dump(mode="json")},
                "model": setting.run.model,
                "test_rows": setting.run.score.test_rows,
                "score_seed": setting.run.score.seed,
                "steps": setting.run.train.steps,
                "state_numbers": _state_numbers(setting),
                "best_rate": best,
                "swept": [_entry(cell, results[cell.folder_name]) for cell in swept],
                "runs": [_entry(cell, results[cell.folder_name]) for cell in mine if cell.rate == best],
            }
        )
    summary = {
        "name": recipe.name,
        "missing": planned_count(recipe) - len(cells),
        "arms": list(recipe.arms),
        "axes": {axis: list(dict.fromkeys(entry["point"][axis] for entry in settings)) for axis in recipe.grid},
        "seeds": recipe.seeds,
        "settings": settings,
    }
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_text(recipe.folder / "recipe.yaml", recipe.to_yaml())
    write_text(recipe.folder / "results.json", json.dumps(summary, indent=1))
    return recipe.folder


def _state_numbers(setting: Setting) -> int:
    """Return how many numbers the model's cache holds for a sequence of the task's length."""
    task = setting.run.build_task()
    with torch.device("meta"):
        model = build_model(task, setting.run.model)
    return model.state_numbers(task.sequence_length if isinstance(task, VectorTask) else task.length)


def _entry(cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    kept = ("valid", "score", "steps", "seconds", "parameters", "diverged")
    return {
        "folder": cell.folder_name,
        "rate": cell.rate,
        "seed": cell.seed,
        **{name: result[name] for name in kept if name in result},
    }

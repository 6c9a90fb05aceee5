"""The page that explains the folder of a run to whoever opens it."""

from __future__ import annotations

import shlex
from pathlib import Path

from mesalm.train.recipe import Recipe
from mesalm.wording import plural

PAGE = "README.md"

TEXT = """# {name}

A training run of mesalm: {steps}, {tokens}. `journal.jsonl` says how far it is.

| file | what it is |
|---|---|
| `recipe.yaml` | all settings of the run |
| `journal.jsonl` | what happened, one JSON object per line: steps, validations, samples, alarms, checkpoints, the end |
| `corpus.md` | the data: sources, licences, counts, what was dropped |
| `checkpoints/step-N/` | weights, optimiser, random state and place in the data after step N; the newest {keep} stay |
| `final/` | the trained model and its tokenizer; there when the run is finished |

Resume it, or report that it is finished:

    mesalm train {folder}/recipe.yaml

Draw its curves, sample from it, evaluate it:

    mesalm plot {folder} --out {name}.svg
    mesalm sample {folder} --prompt "Once"
    mesalm eval {folder} --suite quick --out {name}-measured

Write a folder for the Hub, and upload it:

    mesalm publish {folder} {name}-published --scores {name}-measured/scores/{name}.json
    mesalm publish {folder} {name}-uploaded --push OWNER/{name}

Give these commands in the folder in which training began.
"""


def run_page(recipe: Recipe, folder: Path) -> str:
    """Return the page, Markdown."""
    return TEXT.format(
        name=recipe.name,
        steps=plural(recipe.steps, "step"),
        tokens=plural(recipe.planned_tokens, "token"),
        keep=recipe.checkpoint.keep,
        folder=shlex.quote(str(folder)),
    )

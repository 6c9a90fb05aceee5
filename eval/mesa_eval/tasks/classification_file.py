"""Classification tasks from a file: lines as in a pair file, the label set in `NAME.labels.json`."""

from __future__ import annotations

import json
from pathlib import Path

from mesa_eval.task import Task, labels_path
from mesa_eval.tasks.pairs_file import read_items, task_name


def read(path: Path) -> Task:
    """Read a classification task.

    Raises ValueError in one line for a label file that is not a list of at least two different strings, an
    output that is not a label, or a label that no line of the pool has.
    """
    beside = labels_path(path)
    try:
        labels = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{beside}: the labels cannot be read ({error})") from error
    strings = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not strings or len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(f"{beside}: must be a list of at least two different strings")
    pool, evaluation = read_items(path)
    for item in (*pool, *evaluation):
        if item.output not in labels:
            raise ValueError(f"{path}: output {item.output!r} is not in {beside.name}")
    missing = set(labels) - {item.output for item in pool}
    if missing:
        raise ValueError(f"{path}: no line of the pool has the label {min(missing)!r}")
    return Task(task_name(path), "class", tuple(pool), tuple(evaluation), tuple(labels))

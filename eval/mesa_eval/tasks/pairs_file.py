"""Pair tasks from a file: one object a line with `input`, `output` and `split` ("pool" or "eval")."""

from __future__ import annotations

from pathlib import Path

from mesa_eval.task import Item, Task
from mesa_eval.tasks.records import read_records


def read(path: Path) -> Task:
    """Read a pair task; see `read_items` for the errors."""
    pool, evaluation = read_items(path)
    return Task(task_name(path), "pair", tuple(pool), tuple(evaluation))


def read_items(path: Path) -> tuple[list[Item], list[Item]]:
    """Read the items for demonstrations and those for queries.

    Raises ValueError in one line for a broken line, an unknown split, an input that is in both splits (the
    answer would be shown), or a split that is empty.
    """
    splits: dict[str, list[Item]] = {"pool": [], "eval": []}
    for number, record in read_records(path, ["input", "output", "split"]):
        if record["split"] not in splits:
            raise ValueError(f"{path}:{number}: split is {record['split']!r}; it must be 'pool' or 'eval'")
        splits[record["split"]].append(Item(record["input"], record["output"]))
    for split, items in splits.items():
        if not items:
            raise ValueError(f"{path}: has no line of split {split!r}; a few-shot task needs both pool and eval")
    both = {item.input for item in splits["pool"]} & {item.input for item in splits["eval"]}
    if both:
        raise ValueError(f"{path}: {min(both)!r} is in pool and in eval; an input may be in one of them only")
    return splits["pool"], splits["eval"]


def task_name(path: Path) -> str:
    """Return the file's name without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")

"""Few-shot tasks, one file per kind; `find_tasks` turns a name, a file or a dataset on the Hub into tasks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.attribute_rules import RULES
from mesa_eval.tasks.task import Task
from mesa_eval.tasks.task_source import read_tasks
from mesa_eval.tasks.word_labels import WORD_LABELS

FROM_TEXT = {
    "copying": "mesa_eval.tasks.copying",
    "key_value_recall": "mesa_eval.tasks.key_value_recall",
    "case_change": "mesa_eval.tasks.case_change",
    "phonebook": "mesa_eval.tasks.phonebook",
}
"""Modules whose `build(documents, seed) -> Task` makes a task from any text."""
WITHOUT_TEXT: dict[str, Task] = {task.name: task for task in (*WORD_LABELS, *RULES)}
BUILT_IN = (*FROM_TEXT, *WITHOUT_TEXT)


def find_tasks(name: str, documents: Sequence[HeldOutDocument], seed: int) -> list[Task]:
    """Return the tasks of a built-in name, a `.jsonl[.gz]` file, a folder of such files, a `.yaml` or `hub:NAME?...`.

    Raises a one-line ValueError for an unknown name, a malformed file, or too little text to make the task from.
    """
    if name in WITHOUT_TEXT:
        return [WITHOUT_TEXT[name]]
    if name not in FROM_TEXT:
        return read_tasks(name, known=BUILT_IN)
    return [importlib.import_module(FROM_TEXT[name]).build(documents, seed)]

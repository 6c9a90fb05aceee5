"""Few-shot tasks, one file a kind; `find_tasks` turns a name, a file or a dataset on the Hub into tasks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.tasks.task import Task
from mesa_eval.tasks.task_source import read_tasks

BUILT_IN = {
    "copying": "mesa_eval.tasks.copying",
    "key_value_recall": "mesa_eval.tasks.key_value_recall",
    "case_change": "mesa_eval.tasks.case_change",
    "phonebook": "mesa_eval.tasks.phonebook",
    "word_labels": "mesa_eval.tasks.word_labels",
    "new_labels": "mesa_eval.tasks.new_labels",
    "letter_labels": "mesa_eval.tasks.letter_labels",
    "noisy_labels": "mesa_eval.tasks.noisy_labels",
    "attribute_rules": "mesa_eval.tasks.attribute_rules",
    "linear_rules": "mesa_eval.tasks.linear_rules",
    "attribute_rules_of_three": "mesa_eval.tasks.attribute_rules_of_three",
    "linear_rules_of_three": "mesa_eval.tasks.linear_rules_of_three",
}
"""Modules with `build(documents, seed) -> Task`, which make a task from any text or from none."""


def find_tasks(name: str, documents: Sequence[HeldOutDocument], seed: int) -> list[Task]:
    """Return the tasks of a name: built in, a `.jsonl[.gz]` file, a folder of them, a `.yaml`, or `hub:NAME?...`.

    Raises ValueError in one line for an unknown name, a file of the wrong form, or too little text to make the task
    from.
    """
    if name not in BUILT_IN:
        return read_tasks(name, known=list(BUILT_IN))
    task = importlib.import_module(BUILT_IN[name]).build(documents, seed)
    if not isinstance(task, Task):
        raise TypeError(f"task {name!r}: its module returned {type(task).__name__}, not a Task")
    return [task]

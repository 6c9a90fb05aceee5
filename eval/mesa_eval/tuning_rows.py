"""The prompts that a soft prefix is learned from: of the tasks' pools or training words, never what they ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks import FROM_TEXT, find_tasks
from mesa_eval.tasks.task import Task
from mesalm.wording import plural

Row = tuple[list[int], int]


def tuning_tasks(names: Sequence[str], seed: int) -> list[Task]:
    """Return the tasks of these names, files or folders of files that a prefix can be learned from.

    Those without prompts to learn from (`Task.tuning_shots`) are left out.
    Raises ValueError where a name leaves none, or two tasks bear one name.
    """
    tasks: list[Task] = []
    for name in names:
        found = [] if name in FROM_TEXT else find_tasks(name, [], seed)  # those from text have no pool
        usable = [task for task in found if task.tuning_shots >= 0]
        if not usable:
            words = ", ".join(task.name for task in found) or name
            raise ValueError(f"task {name}: a prefix is learned from prompts outside the evaluation; {words} has none")
        tasks.extend(usable)
    titles = [task.name for task in tasks]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise ValueError(f"two tasks are named {twice[0]!r}; give each once, or rename one of the files")
    return tasks


def tuning_rows(
    scorer: Scorer, tasks: Sequence[Task], shots: Sequence[int], count: int, seed: int, *, window: int | None = None
) -> list[Row]:
    """Return ``count`` encoded prompts with answers, equally many of each task, those of the first ones one more.

    A row is token ids and the place of the answer's first token. Each has a number of demonstrations drawn from
    ``shots`` and a question of its own (`Task.tuning_text`). Prompts that do not fit the window, by default the
    model's, are left out. Raises ValueError if there are fewer rows than tasks, a task has fewer demonstrations or
    nothing of it fits.
    """
    if count < len(tasks):
        raise ValueError(f"{plural(count, 'prompt')} for {plural(len(tasks), 'task')}: ask for at least one per task")
    each, more = divmod(count, len(tasks))
    return [
        row
        for place, task in enumerate(tasks)
        for row in _task_rows(scorer, task, shots, each + (place < more), seed, window or scorer.max_length)
    ]


def _task_rows(scorer: Scorer, task: Task, shots: Sequence[int], count: int, seed: int, window: int) -> list[Row]:
    if max(shots) > task.tuning_shots:
        raise ValueError(
            f"task {task.name}: shots: prompts to learn from have at most {task.tuning_shots} demonstrations, not"
            f" {max(shots)}"
        )
    random = np.random.RandomState([seed, 0x7E57])
    texts = [task.tuning_text(shots, random) for _ in range(count)]
    pairs = [pair for pair in scorer.encode_pairs(texts) if len(pair.tokens) - 1 <= window]
    if not pairs:
        raise ValueError(f"task {task.name}: no prompt fits the window of {window} tokens of {scorer.name}")
    return [(pair.tokens, pair.start) for pair in pairs]

"""The prompts a soft prefix is learned from: questions and demonstrations of the tasks' pools, never their queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks import find_tasks
from mesa_eval.tasks.episodes import EpisodeTask
from mesa_eval.tasks.task import Task

Row = tuple[list[int], int]


def tuning_tasks(names: Sequence[str], seed: int) -> list[Task]:
    """Return the tasks of few-shot files or folders of them that a prefix can be learned from.

    Those without a pool of demonstrations are left out, and episodes, where labels mean something else each time.
    Raises ValueError where a name leaves none, or two tasks bear one name.
    """
    tasks: list[Task] = []
    for name in names:
        found = find_tasks(name, [], seed)
        usable = [task for task in found if task.pool and not isinstance(task, EpisodeTask)]
        if not usable:
            words = ", ".join(task.name for task in found)
            raise ValueError(f"task {name}: a prefix is learned from a pool of demonstrations; {words} has none")
        tasks.extend(usable)
    titles = [task.name for task in tasks]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise ValueError(f"two tasks are named {twice[0]!r}; give each once, or rename one of the files")
    return tasks


def tuning_rows(scorer: Scorer, tasks: Sequence[Task], shots: Sequence[int], count: int, seed: int) -> list[Row]:
    """Return ``count`` encoded prompts with answers, equally many of each task, those of the first ones one more.

    A row is token ids and the place of the answer's first token. Each has a number of demonstrations drawn from
    ``shots`` and a question of its own, all from the task's pool. Prompts that do not fit the model's window are left
    out. Raises ValueError if there are fewer rows than tasks, a pool is too small or nothing of a task fits.
    """
    if count < len(tasks):
        raise ValueError(f"{count} prompts of {len(tasks)} tasks: ask for at least one per task")
    each, more = divmod(count, len(tasks))
    return [
        row for place, task in enumerate(tasks) for row in _task_rows(scorer, task, shots, each + (place < more), seed)
    ]


def _task_rows(scorer: Scorer, task: Task, shots: Sequence[int], count: int, seed: int) -> list[Row]:
    if max(shots) >= len(task.pool):
        raise ValueError(
            f"task {task.name}: shots: {max(shots)} demonstrations and a question need a pool larger than"
            f" {len(task.pool)}"
        )
    random = np.random.RandomState([seed, 0x7E57])
    texts = []
    for _ in range(count):
        chosen = random.permutation(len(task.pool))[: int(random.choice(list(shots))) + 1]
        *shown, asked = (task.pool[index] for index in chosen)
        prompt, _ = task.prompt(shown, asked.input)
        texts.append((prompt, f" {asked.output}"))
    pairs = [pair for pair in scorer.encode_pairs(texts) if len(pair.tokens) - 1 <= scorer.max_length]
    if not pairs:
        raise ValueError(f"task {task.name}: no prompt fits the window of {scorer.max_length} tokens of {scorer.name}")
    return [(pair.tokens, pair.start) for pair in pairs]

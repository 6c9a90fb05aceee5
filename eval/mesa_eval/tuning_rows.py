"""The prompts a soft prefix is learnt from: questions and demonstrations of a task's pool, never its queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesa_eval.scoring import Scorer
from mesa_eval.task import Task
from mesa_eval.tasks import find_tasks


def tuning_task(name: str, seed: int) -> Task:
    """Return the one task of a few-shot file; ValueError where there are several or it has no demonstrations."""
    found = find_tasks(name, [], seed)
    if len(found) != 1 or not found[0].pool:
        names = ", ".join(task.name for task in found)
        raise ValueError(f"task {name}: a prefix is tuned for one task with a pool of demonstrations, not for {names}")
    return found[0]


def tuning_rows(scorer: Scorer, task: Task, shots: Sequence[int], count: int, seed: int) -> list[tuple[list[int], int]]:
    """Return ``count`` encoded prompts with answers: token ids and the place of the answer's first token.

    Each has a number of demonstrations drawn from ``shots`` and a question of its own, all from the pool. Prompts that
    do not fit the model's window are left out. Raises ValueError if the pool is too small or nothing fits.
    """
    if max(shots) >= len(task.pool):
        raise ValueError(f"shots: {max(shots)} demonstrations and a question need a pool larger than {len(task.pool)}")
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

"""The measures of `mesalm eval` during training, with few items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.measures.copying import copy_measures, score_copying
from mesa_eval.measures.few_shot import CannotAskError, score_task
from mesa_eval.measures.scores import Measure
from mesa_eval.measures.suites import find_suite
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.measures.token_count import TokenCounter
from mesa_eval.reading.documents import held_out_documents
from mesa_eval.reading.processes import Processes
from mesa_eval.reading.reader import Reader
from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks import find_tasks
from mesa_eval.uncertainty.bootstrap import resample

SEED = 0
"""The default of `mesalm eval --seed`, so that all runs have the same items."""
BATCH_TOKENS = 8192


def make_probe(
    prepared: Path, tokenizer: Any, length: int, names: Sequence[str], prompts: int, place: tuple[int, int] = (0, 1)
) -> Callable[[Any, int], Iterator[dict[str, Any]]]:
    """Return a function of model and step that yields the copy scores, then the scores by task and number of shots.

    The items are the first ``prompts`` of suite quick, without variants. ``prepared``: the folder with held-out text;
    ``length``: the length of a training row; ``names``: as for `find_tasks`; ``place``: (index, count) of the process.
    Processes share the work, and all must call the function.

    Raises ValueError for a task that is unknown or cannot be asked with this text and window.
    """
    quick, documents = find_suite("quick"), held_out_documents(prepared, "valid")
    tasks = [task for name in names for task in find_tasks(name, documents, SEED)]
    few_shot = replace(quick.few_shot, queries=prompts, episodes=prompts, passages=prompts, variants=())
    window = min(length, quick.longest_window)

    def measured(reader: Reader) -> Iterator[Measure]:
        copies = score_copying(reader, window, prompts, SEED)
        yield from copy_measures(copies) if copies else ()
        for task in tasks:
            try:
                yield from task_measures(score_task(reader, task, few_shot, window, SEED))
            except CannotAskError as error:
                raise ValueError(f"evaluate.tasks: {task.name}: {error}; name other tasks") from None

    list(measured(TokenCounter(tokenizer, "", len(tokenizer), BATCH_TOKENS, quiet=True)))  # fail early

    def run(model: Any, step: int) -> Iterator[dict[str, Any]]:
        device = str(next(model.parameters()).device)
        scorer = Scorer(
            model, tokenizer, device=device, batch_tokens=BATCH_TOKENS, quiet=True, processes=Processes(*place, device)
        )
        lines: dict[tuple[str, int | None], dict[str, Any]] = {}
        for measure in measured(scorer):
            if not (measure.group or measure.most or measure.metric == "gain"):
                head = {"task": measure.task or "random tokens", "shots": measure.shots}
                line = lines.setdefault((measure.task, measure.shots), head)
                line[measure.metric.removeprefix("copy_")] = _value(measure)
        yield from lines.values()

    return run


def _value(measure: Measure) -> float:
    transform = np.exp if measure.transform else None
    return resample(np.array(measure.numerator), np.array(measure.denominator), transform=transform, draws=1).value

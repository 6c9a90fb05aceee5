"""The parts of an evaluation: text, positions and recall, length, copying, and each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.measures import nulls
from mesa_eval.measures.copying import copy_measures, score_copying
from mesa_eval.measures.few_shot import CannotAskError, score_task
from mesa_eval.measures.icl_curve import position_measures, score_positions
from mesa_eval.measures.length import CannotReadError, length_measures, score_length
from mesa_eval.measures.perplexity import score_documents, text_measures
from mesa_eval.measures.plan import EvaluationPlan
from mesa_eval.measures.scores import Note, Part, TaskRecord
from mesa_eval.measures.task_measures import VARIANTS, task_measures
from mesa_eval.measures.text_recall import rare_in_training, recall_measures
from mesa_eval.reading.documents import text_fingerprint
from mesa_eval.reading.reader import NotFiniteError, Reader
from mesa_eval.tasks.task import Task


@dataclass(frozen=True)
class Measurement:
    """One part to measure; `inputs` is plain data that identifies what is asked.

    run: returns a part without name, key and costs.
    """

    name: str
    inputs: Any
    run: Callable[[], Part]
    task: str = ""


def measurements(reader: Reader, window: int, plan: EvaluationPlan, training_data: Path | None) -> list[Measurement]:
    """Return all parts to measure of a model, in order; in `training_data` the rare pairs of tokens are counted."""
    suite, seed, documents = plan.suite, plan.seed, text_fingerprint(plan.documents)
    wanted, most = min(suite.position_windows, max(1, suite.position_tokens // window)), suite.document_windows
    asked = reader, window, plan
    return [
        Measurement("text", text_fingerprint(plan.sample), partial(_text, *asked)),
        Measurement(
            "positions",
            [documents, wanted, most, seed, str(training_data)],
            partial(_positions, *asked, wanted, training_data),
        ),
        Measurement("length", [documents, suite.length_windows, most, seed], partial(_length, *asked)),
        Measurement("copying", [suite.copy_windows, seed], partial(_copying, *asked)),
        *(
            Measurement(
                f"task/{task.name}",
                [task.fingerprint(), dataclasses.asdict(suite.few_shot), seed, nulls.VERSION],
                partial(_task, *asked, task),
                task.name,
            )
            for task in plan.tasks
        ),
        *(
            Measurement(f"task/{name}", reason, partial(_not_asked, name, "built in", reason), name)
            for name, reason in plan.missing
        ),
    ]


def _text(reader: Reader, window: int, plan: EvaluationPlan) -> Part:
    scores = score_documents(reader, plan.sample, window)
    raw = {"documents": [dataclasses.asdict(score) for score in scores]}
    lost = sum(score.lost for score in scores)
    notes = [_lost("text: no bits per byte", lost, len(scores), "documents")] if lost else []
    measures = text_measures(scores, text_fingerprint(plan.sample))
    return Part(measures=measures, raw=raw, notes=notes)


def _positions(reader: Reader, window: int, plan: EvaluationPlan, wanted: int, training_data: Path | None) -> Part:
    from mesalm.data.prepared import Prepared

    scores = score_positions(reader, plan.documents, window, wanted, plan.suite.document_windows, plan.seed)
    if scores is None:
        reason = f"no document has {window + 1} tokens" if window >= 8 else f"a window of {window} tokens is too short"
        return _missed("loss by position and recall are", reason)
    rare, notes = None, []
    if training_data is not None:
        rare = rare_in_training(scores.tokens, Prepared(training_data).rows("train"))
    else:
        words = "recall is not split by what is rare in training: the training text is not known"
        notes.append(Note(words, own=True))
    raw = {"window": window, "owners": list(scores.owners), "nats": np.round(scores.losses, 4).tolist()}
    measures = [*position_measures(scores), *recall_measures(scores, rare)]
    return Part(measures=measures, raw=raw, notes=notes)


def _length(reader: Reader, window: int, plan: EvaluationPlan) -> Part:
    wanted, most = plan.suite.length_windows, plan.suite.document_windows
    try:
        scores = score_length(reader, plan.documents, window, wanted, most, plan.seed)
    except (CannotReadError, NotFiniteError) as error:
        return _missed("loss past the window is", str(error).removeprefix(f"{reader.name}: "))
    return Part(measures=length_measures(scores), raw={"window": window, "owners": list(scores.owners)})


def _copying(reader: Reader, window: int, plan: EvaluationPlan) -> Part:
    scores = score_copying(reader, window, plan.suite.copy_windows, plan.seed)
    if scores is None:
        return _missed("copying is", "the window or the vocabulary is too small")
    return Part(measures=copy_measures(scores), raw=dataclasses.asdict(scores))


def _task(reader: Reader, window: int, plan: EvaluationPlan, task: Task) -> Part:
    try:
        scores = score_task(reader, task, plan.suite.few_shot, window, plan.seed)
    except CannotAskError as error:
        return _not_asked(task.name, task.kind, str(error))
    by_shots = {key: [dataclasses.asdict(one) for one in found] for key, found in scores.by_variant.items()}
    notes = list(task.notes)
    if "contains" in task.metrics and not reader.writes():
        notes.append("generated text was not scored, since the model has no `generate`")
    left = [f"{task.name}: {note}" for note in notes]
    for variant, count in scores.left_out.items():
        if count:
            of = len(scores.queries) + scores.left_out[""] * (not variant)
            words = f"{task.name}{VARIANTS[variant]}: {count} of {of}"
            left.append(f"{words} left out: with their answers they exceed {window} tokens")
    found = [Note(note) for note in left]
    if scores.lost:
        found.append(_lost(f"{task.name}: no likelihood of answers", scores.lost, scores.answers, "answers"))
    if scores.record.cut:
        words = ", ".join(map(str, scores.record.cut))
        found.append(
            Note(f"{task.name}: {words} shots left out: a prompt exceeds {window} tokens or there are too few items")
        )
    raw = {"queries": scores.queries, "levels": by_shots}
    return Part(measures=task_measures(scores), raw=raw, task=scores.record, notes=found)


def _missed(what: str, reason: str) -> Part:
    return Part(notes=[Note(f"{what} not measured: {reason}", own=True)])


def _lost(what: str, lost: int, of: int, things: str) -> Note:
    return Note(f"{what}: {lost} of {of} {things} change when encoded and decoded", own=True)


def _not_asked(name: str, kind: str, reason: str) -> Part:
    record = TaskRecord(name, kind, skipped=reason)
    return Part(task=record, notes=[Note(f"{name}: not measured: {reason}")])

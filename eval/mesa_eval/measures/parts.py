"""The parts of an evaluation, one thing asked each: text, positions and recall, length, copying, and every task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.measures.copying import copy_measures, score_copying
from mesa_eval.measures.few_shot import CannotAskError, score_task
from mesa_eval.measures.icl_curve import position_measures, score_positions
from mesa_eval.measures.length import length_measures, score_length
from mesa_eval.measures.perplexity import score_documents, text_measures
from mesa_eval.measures.plan import EvaluationPlan
from mesa_eval.measures.scores import Measure, Note, TaskRecord
from mesa_eval.measures.task_measures import VARIANTS, task_measures
from mesa_eval.measures.text_recall import rare_in_training, recall_measures
from mesa_eval.reading.documents import text_fingerprint
from mesa_eval.reading.reader import Reader
from mesa_eval.tasks.task import Task


@dataclass(frozen=True)
class Subject:
    """A model, its window, and the plan of what it is asked."""

    scorer: Reader
    window: int
    plan: EvaluationPlan


@dataclass(frozen=True)
class Answer:
    """What came of one thing asked; as in `Part`, which adds what it cost."""

    measures: list[Measure]
    raw: dict[str, Any] = field(default_factory=dict)
    task: TaskRecord | None = None
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """One thing to ask; `wording` is plain data that is equal only where the same is asked."""

    name: str
    wording: Any
    ask: Callable[[], Answer]
    task: str = ""


def questions(subject: Subject, training_data: Path | None) -> list[Question]:
    """Return everything that a model is asked, in order; `training_data` tells which pairs of tokens are rare in it."""
    plan, suite, seed = subject.plan, subject.plan.suite, subject.plan.seed
    wanted = min(suite.position_windows, max(1, suite.position_tokens // subject.window))
    return [
        Question("text", text_fingerprint(plan.sample), partial(_ask_text, subject)),
        Question(
            "positions",
            [text_fingerprint(plan.documents), wanted, suite.document_windows, seed, str(training_data)],
            partial(_ask_positions, subject, wanted, training_data),
        ),
        Question(
            "length",
            [text_fingerprint(plan.documents), suite.length_windows, suite.document_windows, seed],
            partial(_ask_length, subject),
        ),
        Question("copying", [suite.copy_windows, seed], partial(_ask_copying, subject)),
        *(
            Question(
                f"task/{task.name}",
                [task.fingerprint(), dataclasses.asdict(suite.few_shot), seed],
                partial(_ask_task, subject, task),
                task.name,
            )
            for task in plan.tasks
        ),
        *(
            Question(f"task/{name}", reason, partial(_not_asked, name, "built in", reason), name)
            for name, reason in plan.missing
        ),
    ]


def _ask_text(subject: Subject) -> Answer:
    scores = score_documents(subject.scorer, subject.plan.sample, subject.window)
    raw = {"documents": [dataclasses.asdict(score) for score in scores]}
    lost = sum(score.lost for score in scores)
    notes = [_lost("text: no bits per byte", lost, len(scores), "documents")] if lost else []
    return Answer(text_measures(scores, text_fingerprint(subject.plan.sample)), raw, notes=notes)


def _ask_positions(subject: Subject, wanted: int, training_data: Path | None) -> Answer:
    from mesalm.data.prepared import Prepared

    plan, window = subject.plan, subject.window
    most = plan.suite.document_windows
    scores = score_positions(subject.scorer, plan.documents, window, wanted, most, plan.seed)
    if scores is None:
        reason = f"no document has {window + 1} tokens" if window >= 8 else f"a window of {window} tokens is too short"
        return Answer([], notes=[Note(f"loss by position and recall are not measured: {reason}", own=True)])
    rare, notes = None, []
    if training_data is not None:
        rare = rare_in_training(scores.tokens, Prepared(training_data).rows("train"))
    else:
        words = "recall is not split by what is rare in training: the training text is not known"
        notes.append(Note(words, own=True))
    raw = {"window": window, "owners": list(scores.owners), "nats": np.round(scores.losses, 4).tolist()}
    return Answer([*position_measures(scores), *recall_measures(scores, rare)], raw, notes=notes)


def _ask_length(subject: Subject) -> Answer:
    plan, scorer, window = subject.plan, subject.scorer, subject.window
    wanted, most = plan.suite.length_windows, plan.suite.document_windows
    try:
        scores = score_length(scorer, plan.documents, window, wanted, most, plan.seed)
    except ValueError as error:
        reason = str(error).removeprefix(f"{scorer.name}: ")
        return Answer([], notes=[Note(f"loss past the window is not measured: {reason}", own=True)])
    return Answer(length_measures(scores), {"window": window, "owners": list(scores.owners)})


def _ask_copying(subject: Subject) -> Answer:
    plan = subject.plan
    scores = score_copying(subject.scorer, subject.window, plan.suite.copy_windows, plan.seed)
    if scores is None:
        reason = "the window or the vocabulary is too small"
        return Answer([], notes=[Note(f"copying is not measured: {reason}", own=True)])
    return Answer(copy_measures(scores), dataclasses.asdict(scores))


def _ask_task(subject: Subject, task: Task) -> Answer:
    plan, window = subject.plan, subject.window
    try:
        scores = score_task(subject.scorer, task, plan.suite.few_shot, window, plan.seed)
    except CannotAskError as error:
        return _not_asked(task.name, task.kind, str(error))
    raw = {
        "queries": scores.queries,
        "levels": {key: [dataclasses.asdict(level) for level in levels] for key, levels in scores.levels.items()},
    }
    notes = [Note(f"{task.name}: {note}") for note in task.notes]
    if "contains" in task.metrics and not subject.scorer.writes():
        notes.append(Note(f"{task.name}: nothing was looked for in what the model writes, since it has no `generate`"))
    for variant, left_out in scores.left_out.items():
        if left_out:
            of = len(scores.queries) + scores.left_out[""] * (not variant)
            words = f"{task.name}{VARIANTS[variant]}: {left_out} of {of}"
            notes.append(Note(f"{words} left out, with their answer they exceed {window} tokens"))
    if scores.lost:
        notes.append(_lost(f"{task.name}: no likelihood of answers", scores.lost, scores.answers, "answers"))
    if scores.record.cut:
        words = ", ".join(map(str, scores.record.cut))
        notes.append(Note(f"{task.name}: {words} shots left out, a prompt exceeds {window} tokens or items run out"))
    return Answer(task_measures(scores), raw, scores.record, notes)


def _lost(what: str, lost: int, of: int, things: str) -> Note:
    return Note(f"{what}: {lost} of {of} {things} do not come back from the tokenizer", own=True)


def _not_asked(name: str, kind: str, reason: str) -> Answer:
    record = TaskRecord(name, kind, skipped=reason)
    return Answer([], task=record, notes=[Note(f"{name}: not measured: {reason}")])

"""The parts of an evaluation, one thing asked each: text, positions and recall, length, copying, and every task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.documents import Document, text_fingerprint
from mesa_eval.measures.copying import copy_measures, score_copying
from mesa_eval.measures.few_shot import CannotAskError, score_task
from mesa_eval.measures.icl_curve import position_measures, score_positions
from mesa_eval.measures.length import length_measures, score_length
from mesa_eval.measures.perplexity import score_documents, text_measures
from mesa_eval.measures.task_measures import VARIANTS, task_measures
from mesa_eval.measures.text_recall import rare_in_training, recall_measures
from mesa_eval.protocols import Protocol
from mesa_eval.reading.reader import Reader
from mesa_eval.scores import Part, TaskRecord
from mesa_eval.tasks.task import Task


@dataclass(frozen=True)
class Subject:
    """Hold a model and everything that it is asked."""

    scorer: Reader
    window: int
    protocol: Protocol
    seed: int
    documents: Sequence[Document]
    sample: Sequence[Document]
    tasks: Sequence[Task]
    missing: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Question:
    """Hold one thing to ask; `wording` is plain data that is equal only where the same is asked."""

    name: str
    wording: Any
    ask: Callable[[], Part]


def questions(subject: Subject, training_data: Path | None) -> list[Question]:
    """Return everything that a model is asked, in order; `training_data` tells which pairs of tokens are rare in it."""
    protocol, seed = subject.protocol, subject.seed
    wanted = min(protocol.position_windows, max(1, protocol.position_tokens // subject.window))
    return [
        Question("text", text_fingerprint(subject.sample), partial(_ask_text, subject)),
        Question(
            "positions",
            [text_fingerprint(subject.documents), wanted, protocol.document_windows, seed, str(training_data)],
            partial(_ask_positions, subject, wanted, training_data),
        ),
        Question(
            "length",
            [text_fingerprint(subject.documents), protocol.length_windows, protocol.document_windows, seed],
            partial(_ask_length, subject),
        ),
        Question("copying", [protocol.copy_windows, seed], partial(_ask_copying, subject)),
        *(
            Question(
                f"task/{task.name}",
                [task.fingerprint(), dataclasses.asdict(protocol.few_shot), seed],
                partial(_ask_task, subject, task),
            )
            for task in subject.tasks
        ),
        *(
            Question(f"task/{name}", reason, partial(_not_asked, name, "built in", reason))
            for name, reason in subject.missing
        ),
    ]


def _ask_text(subject: Subject) -> Part:
    scores = score_documents(subject.scorer, subject.sample, subject.window)
    raw = {"documents": [dataclasses.asdict(score) for score in scores]}
    lost = sum(score.lost for score in scores)
    notes = [_lost_words("text: no bits per byte", lost, len(scores), "documents", subject)] if lost else []
    return Part("text", "", text_measures(scores, text_fingerprint(subject.sample)), raw, notes=notes)


def _ask_positions(subject: Subject, wanted: int, training_data: Path | None) -> Part:
    window, name = subject.window, subject.scorer.name
    scores = score_positions(
        subject.scorer, subject.documents, window, wanted, subject.protocol.document_windows, subject.seed
    )
    if scores is None:
        reason = f"no document has {window + 1} tokens" if window >= 8 else f"a window of {window} tokens is too short"
        return Part("positions", "", [], notes=[f"{name}: loss by position and recall are not measured: {reason}"])
    rare = None if training_data is None else rare_in_training(scores.tokens, training_data)
    notes = []
    if rare is None:
        notes.append(f"{name}: recall is not split by what is rare in training: the training text is not known")
    raw = {"window": window, "owners": list(scores.owners), "nats": np.round(scores.losses, 4).tolist()}
    return Part("positions", "", [*position_measures(scores), *recall_measures(scores, rare)], raw, notes=notes)


def _ask_length(subject: Subject) -> Part:
    protocol, scorer, window = subject.protocol, subject.scorer, subject.window
    wanted, most = protocol.length_windows, protocol.document_windows
    try:
        scores = score_length(scorer, subject.documents, window, wanted, most, subject.seed)
    except ValueError as error:
        reason = str(error).removeprefix(f"{scorer.name}: ")
        return Part("length", "", [], notes=[f"loss past the window is not measured: {reason} ({scorer.name})"])
    return Part("length", "", length_measures(scores), {"window": window, "owners": list(scores.owners)})


def _ask_copying(subject: Subject) -> Part:
    scores = score_copying(subject.scorer, subject.window, subject.protocol.copy_windows, subject.seed)
    if scores is None:
        reason = "the window or the vocabulary is too small"
        return Part("copying", "", [], notes=[f"{subject.scorer.name}: copying is not measured: {reason}"])
    return Part("copying", "", copy_measures(scores), dataclasses.asdict(scores))


def _ask_task(subject: Subject, task: Task) -> Part:
    window = subject.window
    try:
        scores = score_task(subject.scorer, task, subject.protocol.few_shot, window, subject.seed)
    except CannotAskError as error:
        return _not_asked(task.name, task.kind, str(error))
    raw = {
        "queries": scores.queries,
        "levels": {key: [dataclasses.asdict(level) for level in levels] for key, levels in scores.levels.items()},
    }
    notes = [f"{task.name}: {note}" for note in task.notes]
    if "contains" in task.metrics and not subject.scorer.writes():
        notes.append(f"{task.name}: nothing was looked for in what the model writes, since it has no `generate`")
    for variant, left_out in scores.left_out.items():
        if left_out:
            of = len(scores.queries) + scores.left_out[""] * (not variant)
            words = f"{task.name}{VARIANTS[variant]}: {left_out} of {of}"
            notes.append(f"{words} left out, with their answer they exceed {window} tokens")
    if scores.lost:
        notes.append(
            _lost_words(f"{task.name}: no likelihood of answers", scores.lost, scores.answers, "answers", subject)
        )
    if scores.record.cut:
        words = ", ".join(map(str, scores.record.cut))
        notes.append(f"{task.name}: {words} shots left out, a prompt exceeds {window} tokens or items run out")
    return Part(f"task/{task.name}", "", task_measures(scores), raw, scores.record, notes)


def _lost_words(what: str, lost: int, of: int, things: str, subject: Subject) -> str:
    return f"{what}: {lost} of {of} {things} do not come back from the tokenizer ({subject.scorer.name})"


def _not_asked(name: str, kind: str, reason: str) -> Part:
    record = TaskRecord(name, kind, skipped=reason)
    return Part(f"task/{name}", "", [], task=record, notes=[f"{name}: not measured: {reason}"])

"""Fix what every model is asked: documents, tasks and windows, before any model is opened.

Subsamples are fixed by texts and seed. Models with one tokenizer share one window length, the least of their training
lengths, so their windows are the same tokens.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesa_eval.documents import HeldOutDocument, held_out_documents, read_documents, subsample
from mesa_eval.protocols import Protocol, find_protocol
from mesa_eval.reading.model_source import (
    ModelSource,
    find_model,
    load_tokenizer,
    tokenizer_fingerprint,
    training_length,
)
from mesa_eval.tasks import BUILT_IN, find_tasks
from mesa_eval.tasks.task import Task


@dataclass(frozen=True)
class EvaluationPlan:
    """What every model is asked: the documents, the tasks and each model's window; and what could not be made.

    missing: (task, reason) of built-in tasks for which there is too little text.
    """

    protocol: Protocol
    seed: int
    sources: tuple[ModelSource, ...]
    windows: tuple[int, ...]
    documents: tuple[HeldOutDocument, ...]
    sample: tuple[HeldOutDocument, ...]
    tasks: tuple[Task, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]
    missing: tuple[tuple[str, str], ...] = ()


def make_plan(
    models: Sequence[str],
    suite: str,
    texts: Sequence[str],
    split: str,
    tasks: Sequence[str],
    seed: int,
    trust_remote_code: bool = False,
) -> EvaluationPlan:
    """Fix text, windows and tasks for all models; see `mesa_eval.evaluate` for the arguments and errors."""
    if not models:
        raise ValueError("no model given; name at least one run, model folder or Hub name")
    protocol = find_protocol(suite)
    sources = _named_apart([find_model(model) for model in models])
    tokenizers = [load_tokenizer(source, trust_remote_code) for source in sources]
    notes: list[str] = []
    documents = read_documents(texts, notes) if texts else _held_out(sources, split, notes)
    sample = subsample(documents, total_bytes=protocol.text_bytes, document_bytes=protocol.document_bytes, seed=seed)
    if not sample:
        raise ValueError("no text: every document is empty; name other files with --text")
    names = list(protocol.tasks) if not tasks else [name for name in tasks if name != "none"]
    built, missing = _build_tasks(names, documents, seed, protocol, notes)
    repeated = {task.name for task in built if [other.name for other in built].count(task.name) > 1}
    if repeated:
        raise ValueError(f"two tasks are named {min(repeated)!r}; rename one of the files")
    keys, lengths = [], []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        keys.append(tokenizer_fingerprint(tokenizer))
        lengths.append(min(training_length(source, tokenizer, trust_remote_code), protocol.longest_window))
    windows = tuple(min(length for key, length in zip(keys, lengths, strict=True) if key == own) for own in keys)
    record = {
        **protocol.record(),
        "seed": seed,
        "text": [str(text) for text in texts] or f"{split} split of the run's prepared data",
        "documents_available": len(documents),
        "tasks": names,
        "command": " ".join(_versioned(sys.argv, protocol.name)),
    }
    return EvaluationPlan(
        protocol=protocol,
        seed=seed,
        sources=sources,
        windows=windows,
        documents=tuple(documents),
        sample=tuple(sample),
        tasks=tuple(built),
        record=record,
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _versioned(arguments: Sequence[str], version: str) -> list[str]:
    """Return the command with the version of the suite, which stays what it is when a newer one comes."""
    kept = [
        word
        for word, before in zip(arguments, ["", *arguments], strict=False)
        if before != "--suite" and word != "--suite" and not word.startswith("--suite=")
    ]
    return [*kept, "--suite", version]


def _build_tasks(
    names: Sequence[str], documents: Sequence[HeldOutDocument], seed: int, protocol: Protocol, notes: list[str]
) -> tuple[list[Task], list[tuple[str, str]]]:
    """Make the tasks; a built-in one that the text is too short for is told in the report, a wrong file is an error.

    Tasks of a folder that the suite asks by name only are left out, and a note says so.
    """
    built: list[Task] = []
    missing = []
    for name in names:
        try:
            found = find_tasks(name, documents, seed)
            if Path(name).expanduser().is_dir():
                left = [task for task in found if task.kind in protocol.few_shot.named_only]
                found = [task for task in found if task not in left]
                if left:
                    tasks = ", ".join(task.name for task in left)
                    notes.append(f"not asked in {protocol.name}, unless their files are named: {tasks}")
            built.extend(found)
        except ValueError as error:
            if name not in BUILT_IN:
                raise
            missing.append((name, str(error)))
    return built, missing


def _held_out(sources: Sequence[ModelSource], split: str, notes: list[str]) -> list[HeldOutDocument]:
    runs = [source for source in sources if source.prepared is not None]
    if not runs or runs[0].prepared is None:
        raise ValueError("no text: none of the models is a run with prepared data; name text files with --text")
    for source in runs[1:]:
        if source.prepared != runs[0].prepared:
            notes.append(
                f"the text is held out for {runs[0].name}; {source.name} was trained on data prepared otherwise"
                " and may have seen it"
            )
    return held_out_documents(runs[0].prepared, split)


def _named_apart(sources: list[ModelSource]) -> tuple[ModelSource, ...]:
    """Number models of the same name, so that each has a row and a file of its own."""
    counts: dict[str, int] = {}
    result = []
    for source in sources:
        counts[source.name] = counts.get(source.name, 0) + 1
        number = counts[source.name]
        result.append(source if number == 1 else dataclasses.replace(source, name=f"{source.name}-{number}"))
    return tuple(result)

"""Decide what every model is asked (documents, tasks and windows) before any model is opened.

Subsamples depend only on texts and seed. Models with the same tokenizer share one window length, the smallest of their
training lengths, so their windows have the same tokens.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesa_eval.measures.suites import Suite, find_suite
from mesa_eval.reading.documents import HeldOutDocument, held_out_documents, read_documents, subsample, told_apart
from mesa_eval.reading.model_source import ModelSource, find_model, tokenizer_fingerprint, training_length
from mesa_eval.tasks import BUILT_IN, find_tasks
from mesa_eval.tasks.task import Task
from mesalm.files import expanded, file_hash
from mesalm.hub.open_model import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request: what to measure and how.

    models: run folders, model folders or Hub names. texts: files to score; without them, the documents of `split` of
    the first run among the models. tasks: built-in names, files or datasets, see `mesa_eval.tasks.find_tasks` (none
    given: the suite's own; "none": no task). batch_tokens: tokens per forward pass. code: files imported to open the
    models, whose sha256 is recorded. quiet: whether nothing is printed.
    """

    models: Sequence[str]
    suite: str = "quick"
    texts: Sequence[str] = ()
    split: str = "valid"
    tasks: Sequence[str] = ()
    seed: int = 0
    device: str = "auto"
    batch_tokens: int = 8192
    trust_remote_code: bool = False
    code: Sequence[Path] = ()
    quiet: bool = False


@dataclass(frozen=True)
class EvaluationPlan:
    """What every model is asked: the documents, the tasks and each model's window.

    missing: (task, reason) of built-in tasks for which there is too little text.
    """

    request: Request
    suite: Suite
    sources: tuple[ModelSource, ...]
    windows: tuple[int, ...]
    documents: tuple[HeldOutDocument, ...]
    sample: tuple[HeldOutDocument, ...]
    tasks: tuple[Task, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def seed(self) -> int:
        """Return the seed of all random choices."""
        return self.request.seed


def make_plan(request: Request) -> EvaluationPlan:
    """Fix text, windows and tasks for all models; ValueError in one line for bad input."""
    if not request.models:
        raise ValueError("no model given; name at least one run, model folder or Hub name")
    suite, seed = find_suite(request.suite), request.seed
    sources = _named_apart([find_model(model) for model in request.models])
    windows = _windows(sources, suite.longest_window, request.trust_remote_code)
    notes: list[str] = []
    documents = read_documents(request.texts, notes) if request.texts else _held_out(sources, request.split, notes)
    sample = subsample(documents, total_bytes=suite.text_bytes, document_bytes=suite.document_bytes, seed=seed)
    if not sample:
        raise ValueError("no text: every document is empty; name other files with --text")
    names = [name for name in request.tasks or suite.tasks if name != "none"]
    tasks, missing = _build_tasks(names, documents, seed, suite, notes)
    record = {
        **suite.record(),
        "seed": seed,
        "text": [str(text) for text in request.texts] or f"{request.split} split of the run's prepared data",
        "documents_available": len(documents),
        "tasks": names,
        "code": {str(file): file_hash(file) for file in request.code},
        "command": shlex.join([_program(), *_versioned(sys.argv[1:], suite.name)]),
    }
    return EvaluationPlan(
        request,
        suite,
        sources,
        windows,
        tuple(documents),
        tuple(sample),
        tuple(tasks),
        record,
        tuple(notes),
        tuple(missing),
    )


def _windows(sources: Sequence[ModelSource], longest: int, trust_remote_code: bool) -> tuple[int, ...]:
    """Return each model's window: the smallest training length of the models that share its tokenizer."""
    keys: list[str] = []
    least: dict[str, int] = {}
    for source in sources:
        tokenizer = open_tokenizer(source.argument, trust_remote_code=trust_remote_code)
        key = tokenizer_fingerprint(tokenizer)
        keys.append(key)
        least[key] = min(least.get(key, longest), training_length(source, tokenizer, trust_remote_code))
    return tuple(least[key] for key in keys)


def _program() -> str:
    """Return "mesalm" if its command line is running, else the path of the calling script."""
    called = Path(sys.argv[0])
    return "mesalm" if called.name in ("mesalm", "__main__.py") else str(called)


def _versioned(arguments: Sequence[str], version: str) -> list[str]:
    """Return the command with the suite's version, so that it repeats the same measurement later."""
    kept = [
        word
        for word, before in zip(arguments, ["", *arguments], strict=False)
        if before != "--suite" and word != "--suite" and not word.startswith("--suite=")
    ]
    return [*kept, "--suite", version]


def _build_tasks(
    names: Sequence[str], documents: Sequence[HeldOutDocument], seed: int, suite: Suite, notes: list[str]
) -> tuple[list[Task], list[tuple[str, str]]]:
    """Make the tasks; also return the built-in ones for which the text is too short. An invalid file is an error.

    Tasks in a folder that the suite asks only by name are left out, with a note.
    """
    built: list[Task] = []
    missing = []
    for name in names:
        try:
            found = find_tasks(name, documents, seed)
        except ValueError as error:
            if name not in BUILT_IN:
                raise
            missing.append((name, str(error)))
            continue
        if expanded(name).is_dir():
            left = [task.name for task in found if task.kind in suite.few_shot.named_only]
            found = [task for task in found if task.kind not in suite.few_shot.named_only]
            if left:
                notes.append(f"not in {suite.name} unless their files are named: {', '.join(left)}")
        built.extend(found)
    counts = Counter(task.name for task in built)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"two tasks are named {min(repeated)!r}; give each once, or rename one of the files")
    return built, missing


def _held_out(sources: Sequence[ModelSource], split: str, notes: list[str]) -> list[HeldOutDocument]:
    runs = [source for source in sources if source.prepared is not None]
    if not runs or runs[0].prepared is None:
        raise ValueError("no text: none of the models is a run with prepared data; name text files with --text")
    for source in runs[1:]:
        if source.prepared != runs[0].prepared:
            notes.append(
                f"the text is held out for {runs[0].name}; {source.name} was trained on differently prepared data"
                " and may have seen it"
            )
    return held_out_documents(runs[0].prepared, split)


def _named_apart(sources: list[ModelSource]) -> tuple[ModelSource, ...]:
    """Number models of the same name, so that each has its own row and file."""
    names = told_apart([source.name for source in sources], "-")
    return tuple(dataclasses.replace(source, name=name) for source, name in zip(sources, names, strict=True))

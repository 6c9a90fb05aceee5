"""The door of `mesalm eval`: fix what is asked, then ask every model the same.

Subsamples are fixed by texts and seed before any model is opened. Models with one tokenizer share one window length,
the least of their training lengths, so their windows are the same tokens. Every part that was measured is written at
once, and taken from there when the same is asked of the same model again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mesa_eval.documents import Document, held_out_documents, read_documents, subsample, text_fingerprint
from mesa_eval.overlap import overlap_notes
from mesa_eval.part_store import PartStore
from mesa_eval.parts import Subject, questions
from mesa_eval.protocols import Protocol, find_protocol
from mesa_eval.reading.model_record import describe_model, installed_versions
from mesa_eval.reading.model_source import (
    ModelSource,
    find_model,
    load_tokenizer,
    tokenizer_fingerprint,
    training_length,
)
from mesa_eval.reading.processes import Processes, join_processes
from mesa_eval.reading.scoring import Scorer
from mesa_eval.scores import Note, Part, Scores
from mesa_eval.tasks import BUILT_IN, find_tasks
from mesa_eval.tasks.task import Task


@dataclass(frozen=True)
class Plan:
    """Hold what every model is asked: the documents, the tasks and each model's window; and what could not be made.

    missing: (task, reason) of built-in tasks for which there is too little text.
    """

    protocol: Protocol
    seed: int
    sources: tuple[ModelSource, ...]
    windows: tuple[int, ...]
    documents: tuple[Document, ...]
    sample: tuple[Document, ...]
    tasks: tuple[Task, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]
    missing: tuple[tuple[str, str], ...] = ()


def evaluate(
    models: Sequence[str],
    suite: str = "quick",
    *,
    texts: Sequence[str] = (),
    split: str = "valid",
    tasks: Sequence[str] = (),
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_tokens: int = 8192,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> list[Scores]:
    """Measure models under one protocol and print a table of the scores.

    models: run folders, model folders or Hub names. texts: files to score; without them, the documents of
    `split` of the first run among the models. tasks: built-in names, files or datasets, see
    `mesa_eval.tasks.find_tasks` (none given: the suite's own; "none": no task). out: a folder for
    `scores/<model>.json` and, as soon as each is measured, `scores/parts/`; what lies there already is not measured
    again. Under `accelerate launch` the processes share each model's batches. Raises ValueError in one line for bad
    input.
    """
    plan = make_plan(models, suite, texts, split, tasks, seed, trust_remote_code)
    scores = run_plan(plan, out, device, batch_tokens, trust_remote_code, quiet)
    if not quiet and join_processes(device).main:
        from mesa_eval.report.tables import print_comparison
        from mesa_eval.rows import build_comparison

        print_comparison(build_comparison(scores, differences=False))
    return scores


def make_plan(
    models: Sequence[str],
    suite: str,
    texts: Sequence[str],
    split: str,
    tasks: Sequence[str],
    seed: int,
    trust_remote_code: bool = False,
) -> Plan:
    """Fix text, windows and tasks for all models; see `evaluate` for the arguments and errors."""
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
    return Plan(
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
    names: Sequence[str], documents: Sequence[Document], seed: int, protocol: Protocol, notes: list[str]
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


def run_plan(
    plan: Plan,
    out: Path | None,
    device: str = "auto",
    batch_tokens: int = 8192,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> list[Scores]:
    """Score every model of a plan, one after another, and write each one's scores as soon as they are there."""
    processes = join_processes(device)
    quiet = quiet or not processes.main
    prepared = [source.prepared for source in plan.sources if source.prepared is not None]
    plan = dataclasses.replace(plan, notes=(*plan.notes, *overlap_notes(prepared, plan.sample)))
    folder = None if out is None else Path(out) / "scores"
    console = Console(stderr=True, soft_wrap=True)
    results = []
    for source, window in zip(plan.sources, plan.windows, strict=True):
        scorer = Scorer.open(
            source,
            device=device,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            quiet=quiet,
            processes=processes,
        )
        store = PartStore(folder, processes)
        try:
            scores = score_model(scorer, plan, window, store)
        except KeyboardInterrupt:
            if folder is None:
                raise
            raise KeyboardInterrupt(
                f"what was measured lies in {folder}, and the same command goes on from there"
            ) from None
        if folder is not None and processes.main:
            path = scores.write(folder)
            if not quiet:
                again = f", {store.taken} of {len(scores.parts)} parts from an earlier run" if store.taken else ""
                console.print(f"{source.name}: {scores.tokens_run:,} tokens read, scores in {path}{again}")
        results.append(scores)
    return results


def score_model(scorer: Scorer, plan: Plan, window: int, store: PartStore | None = None) -> Scores:
    """Measure one model as the plan says; parts that the store holds are not measured again."""
    store = store or PartStore(None, Processes())
    card = describe_model(scorer, window)
    subject = Subject(scorer, window, plan.protocol, plan.seed, plan.documents, plan.sample, plan.tasks, plan.missing)
    asked = questions(subject, _training_data(plan, card.tokenizer))
    parts: list[Part] = []
    for number, question in enumerate(asked, 1):
        scorer.stage = f"{number}/{len(asked)} "
        key = store.key(card, scorer.configuration(), window, question.name, question.wording)
        part = store.read(key)
        if part is None:
            began, read = time.monotonic(), scorer.tokens_run
            found = question.ask()
            part = Part(
                name=question.name,
                key=key,
                measures=found.measures,
                raw=found.raw,
                task=found.task,
                notes=found.notes,
                tokens_run=scorer.tokens_run - read,
                seconds=time.monotonic() - began,
            )
            store.write(part)
        parts.append(part)
    return Scores(
        model=card,
        protocol=plan.record,
        text_fingerprint=text_fingerprint(plan.sample),
        text_bytes=sum(document.bytes for document in plan.sample),
        documents=len(plan.sample),
        window=window,
        parts=parts,
        versions=installed_versions(),
        notes=[Note(note) for note in plan.notes],
    )


def _training_data(plan: Plan, tokenizer: str) -> Path | None:
    """Return the prepared data of the first run, if it is there and was cut by the tokenizer asked about."""
    from mesalm.data.documents import DataError
    from mesalm.data.prepared import Prepared

    for source in plan.sources:
        if source.prepared is not None:
            try:
                own = tokenizer_fingerprint(Prepared(source.prepared).tokenizer())
            except DataError:
                return None
            return source.prepared if own == tokenizer else None
    return None


def _held_out(sources: Sequence[ModelSource], split: str, notes: list[str]) -> list[Document]:
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

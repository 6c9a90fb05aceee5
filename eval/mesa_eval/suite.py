"""The protocols and the door of `mesalm eval`: the same text, windows and queries for every model.

`quick` reads some 0.3 million tokens a model (256-token windows, 3 built-in tasks), `full` some 8 million; each
task file adds its own. Subsamples are fixed by texts and seed before any model is opened. Models with one
tokenizer share one window length, the least of their training lengths, so their windows are the same tokens.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mesa_eval.documents import (
    Document,
    held_out_documents,
    read_documents,
    subsample,
    text_fingerprint,
)
from mesa_eval.few_shot import FewShotProtocol, score_task, task_measures
from mesa_eval.icl_curve import copy_measures, position_measures, score_copying, score_positions
from mesa_eval.model_source import ModelSource, find_model, load_tokenizer, tokenizer_fingerprint, training_length
from mesa_eval.perplexity import score_documents, text_measures
from mesa_eval.scores import ModelCard, Part, Scores
from mesa_eval.scoring import Scorer
from mesa_eval.task import TASKS, Task, find_task

VERSIONED = ("mesalm", "torch", "transformers", "tokenizers", "numpy", "datasets")


@dataclass(frozen=True)
class Protocol:
    """Fix the sizes of a suite before any model is seen.

    text_bytes, document_bytes: bytes of text scored and the most taken of one document (None: all);
    longest_window: bound on the window length, in tokens; position_tokens, position_windows: bounds on the
    windows for loss by position; copy_windows: random sequences; few_shot: see `FewShotProtocol`; tasks: built-in
    tasks asked when none is named.
    """

    name: str
    text_bytes: int | None
    document_bytes: int | None
    longest_window: int
    position_tokens: int
    position_windows: int
    copy_windows: int
    few_shot: FewShotProtocol
    tasks: tuple[str, ...] = tuple(TASKS)


PROTOCOLS = {
    "quick": Protocol(
        name="quick",
        text_bytes=160_000,
        document_bytes=5_000,
        longest_window=1024,
        position_tokens=32_768,
        position_windows=2_000,
        copy_windows=64,
        few_shot=FewShotProtocol(shots=(0, 1, 2, 4, 8), draws=2, rank_draws=1, queries=40, candidates=5),
    ),
    "full": Protocol(
        name="full",
        text_bytes=4_000_000,
        document_bytes=None,
        longest_window=2048,
        position_tokens=4_194_304,
        position_windows=2_000,
        copy_windows=512,
        few_shot=FewShotProtocol(shots=(0, 1, 2, 4, 8, 16, 32), draws=5, rank_draws=1, queries=100, candidates=20),
    ),
}


@dataclass(frozen=True)
class Plan:
    """Hold what every model is asked: the documents, the tasks and each model's window."""

    protocol: Protocol
    seed: int
    sources: tuple[ModelSource, ...]
    windows: tuple[int, ...]
    documents: tuple[Document, ...]
    sample: tuple[Document, ...]
    tasks: tuple[Task, ...]
    record: dict[str, Any]
    notes: tuple[str, ...]


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
    `split` of the first run among the models. tasks: built-in names or files (none given: the suite's own;
    "none": no task). out: a folder for `scores/<model>.json`. Raises ValueError in one line for bad input.
    """
    plan = make_plan(models, suite, texts, split, tasks, seed, trust_remote_code)
    scores = run_plan(plan, out, device, batch_tokens, trust_remote_code, quiet)
    if not quiet:
        from mesa_eval.compare import build_comparison
        from mesa_eval.tables import print_comparison

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
    if suite not in PROTOCOLS:
        raise ValueError(f"suite {suite!r}: unknown; it must be one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[suite]
    sources = _named_apart([find_model(model) for model in models])
    notes: list[str] = []
    documents = read_documents(texts) if texts else _held_out(sources, split, notes)
    sample = subsample(documents, total_bytes=protocol.text_bytes, document_bytes=protocol.document_bytes, seed=seed)
    if not sample:
        raise ValueError("no text: every document is empty; name other files with --text")
    names = list(protocol.tasks) if not tasks else [name for name in tasks if name != "none"]
    built = [find_task(name, documents, seed) for name in names]
    repeated = {task.name for task in built if [other.name for other in built].count(task.name) > 1}
    if repeated:
        raise ValueError(f"two tasks are named {min(repeated)!r}; rename one of the files")
    keys, lengths = [], []
    for source in sources:
        tokenizer = load_tokenizer(source, trust_remote_code)
        keys.append(tokenizer_fingerprint(tokenizer))
        lengths.append(min(training_length(source, tokenizer, trust_remote_code), protocol.longest_window))
    windows = tuple(min(length for key, length in zip(keys, lengths, strict=True) if key == own) for own in keys)
    record = {
        **json.loads(json.dumps(dataclasses.asdict(protocol))),
        "seed": seed,
        "text": [str(text) for text in texts] or f"{split} split of the run's prepared data",
        "documents_available": len(documents),
        "tasks": names,
        "command": " ".join(sys.argv),
    }
    return Plan(protocol, seed, sources, windows, tuple(documents), tuple(sample), tuple(built), record, tuple(notes))


def run_plan(
    plan: Plan,
    out: Path | None,
    device: str = "auto",
    batch_tokens: int = 8192,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> list[Scores]:
    """Score every model of a plan, one after another, and write each one's scores as soon as they are there."""
    results = []
    for source, window in zip(plan.sources, plan.windows, strict=True):
        scorer = Scorer.open(
            source.argument,
            device=device,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            quiet=quiet,
        )
        scorer.source = source
        scores = score_model(scorer, plan, window)
        if out is not None:
            path = scores.write(Path(out) / "scores")
            if not quiet:
                Console(stderr=True).print(f"{source.name}: {scores.tokens_run:,} tokens read, scores in {path}")
        results.append(scores)
    return results


def score_model(scorer: Scorer, plan: Plan, window: int) -> Scores:
    """Measure one model as the plan says."""
    questions: list[tuple[str, Callable[[], Part]]] = [
        ("text", lambda: _text_part(scorer, plan, window)),
        ("positions", lambda: _position_part(scorer, plan, window)),
        ("copying", lambda: _copy_part(scorer, plan, window)),
        *((f"task/{task.name}", partial(_task_part, scorer, plan, window, task)) for task in plan.tasks),
    ]
    parts = []
    for _, ask in questions:
        began, read = time.monotonic(), scorer.tokens_run
        part = ask()
        part.tokens_run, part.seconds = scorer.tokens_run - read, time.monotonic() - began
        parts.append(part)
    return Scores(
        model=describe_model(scorer, window),
        protocol=plan.record,
        text_fingerprint=text_fingerprint(plan.sample),
        text_bytes=sum(document.bytes for document in plan.sample),
        documents=len(plan.sample),
        window=window,
        parts=parts,
        versions=installed_versions(),
        notes=list(plan.notes),
    )


def _text_part(scorer: Scorer, plan: Plan, window: int) -> Part:
    scores = score_documents(scorer, plan.sample, window)
    raw = {"documents": [dataclasses.asdict(score) for score in scores]}
    return Part("text", "", text_measures(scores, text_fingerprint(plan.sample)), raw)


def _position_part(scorer: Scorer, plan: Plan, window: int) -> Part:
    wanted = min(plan.protocol.position_windows, max(1, plan.protocol.position_tokens // window))
    scores = score_positions(scorer, plan.documents, window, wanted, plan.seed)
    if scores is None:
        reason = f"no document has {window + 1} tokens" if window >= 8 else f"a window of {window} tokens is too short"
        return Part("positions", "", [], notes=[f"{scorer.name}: loss by position is not measured: {reason}"])
    raw = {"window": window, "owners": list(scores.owners), "nats": np.round(scores.losses, 4).tolist()}
    return Part("positions", "", position_measures(scores), raw)


def _copy_part(scorer: Scorer, plan: Plan, window: int) -> Part:
    scores = score_copying(scorer, window, plan.protocol.copy_windows, plan.seed)
    if scores is None:
        reason = "the window or the vocabulary is too small"
        return Part("copying", "", [], notes=[f"{scorer.name}: copying is not measured: {reason}"])
    return Part("copying", "", copy_measures(scores), dataclasses.asdict(scores))


def _task_part(scorer: Scorer, plan: Plan, window: int, task: Task) -> Part:
    scores = score_task(scorer, task, plan.protocol.few_shot, window, plan.seed)
    raw = {"queries": scores.queries, "shots": [dataclasses.asdict(level) for level in scores.shots]}
    notes = [f"{task.name}: {note}" for note in task.notes]
    if scores.record.cut:
        words = ", ".join(map(str, scores.record.cut))
        notes.append(
            f"{task.name}: {words} shots left out, a prompt exceeds {window} tokens or items run out ({scorer.name})"
        )
    return Part(f"task/{task.name}", "", task_measures(scores), raw, scores.record, notes)


def describe_model(scorer: Scorer, window: int) -> ModelCard:
    """Return the model's sizes, fingerprints and training record; the state is measured by filling a cache."""
    config = getattr(scorer.model, "config", None)
    mixers = getattr(config, "mixers", None) or getattr(config, "model_type", "unknown")
    if isinstance(mixers, list | tuple):
        mixers = mixers[0] if len(set(mixers)) == 1 else ", ".join(mixers)
    half, whole = scorer.state_numbers(max(1, window // 2)), scorer.state_numbers(window)
    return ModelCard(
        name=scorer.name,
        argument=scorer.source.argument,
        architecture=type(scorer.model).__name__,
        mixers=str(mixers),
        parameters=scorer.parameters(),
        fingerprint=scorer.fingerprint(),
        tokenizer=tokenizer_fingerprint(scorer.tokenizer),
        vocab_size=scorer.vocab_size,
        max_length=scorer.max_length,
        start_token=scorer.start_token,
        tokens_trained=scorer.source.tokens_trained,
        state_numbers=whole,
        state_grows=None if half is None or whole is None else whole > half,
        training=scorer.source.training,
    )


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score can depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


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

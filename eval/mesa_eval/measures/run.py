"""Run a plan on all its models and store the results.

Every measured part is written immediately and reused when the same is asked of the same model again, so
an interrupted run continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mesa_eval.measures.overlap import overlap_notes
from mesa_eval.measures.parts import measurements
from mesa_eval.measures.plan import EvaluationPlan
from mesa_eval.measures.scores import FORMAT, ModelCard, Note, Part, Scores
from mesa_eval.reading.documents import text_fingerprint
from mesa_eval.reading.model_source import tokenizer_fingerprint
from mesa_eval.reading.processes import Processes, join_processes
from mesa_eval.reading.scoring import Scorer
from mesalm.files import write_text
from mesalm.versions import versions

VERSIONED = ("mesalm", "torch", "transformers", "tokenizers", "numpy", "datasets")


def run_plan(plan: EvaluationPlan, out: Path | None) -> list[Scores]:
    """Score the models of a plan one after another, and write the scores of each as soon as they are complete."""
    request = plan.request
    processes = join_processes(request.device)
    quiet = request.quiet or not processes.main
    prepared = [source.prepared for source in plan.sources if source.prepared is not None]
    plan = dataclasses.replace(plan, notes=(*plan.notes, *overlap_notes(prepared, plan.sample)))
    folder = None if out is None else Path(out) / "scores"
    console = Console(stderr=True, soft_wrap=True)
    results = []
    for source, window in zip(plan.sources, plan.windows, strict=True):
        scorer = Scorer.open(
            source,
            device=request.device,
            batch_tokens=request.batch_tokens,
            trust_remote_code=request.trust_remote_code,
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
                f"finished measurements are in {folder}; run the same command to continue"
            ) from None
        if folder is not None and processes.main:
            path = scores.write(folder)
            if not quiet:
                again = f", {store.taken} of {len(scores.parts)} parts from an earlier run" if store.taken else ""
                console.print(f"{source.name}: {scores.tokens_run:,} tokens read, scores in {path}{again}")
        results.append(scores)
    return results


def score_model(scorer: Scorer, plan: EvaluationPlan, window: int, store: PartStore | None = None) -> Scores:
    """Measure one model according to the plan; parts in the store are not measured again."""
    store = store or PartStore(None, Processes())
    card = describe_model(scorer, window)
    asked = measurements(scorer, window, plan, _training_data(plan, card.tokenizer))
    parts: list[Part] = []
    code = sorted(plan.record["code"].values())
    for number, measurement in enumerate(asked, 1):
        scorer.stage = f"{number}/{len(asked)} "
        inputs = [measurement.inputs, *code] if code else measurement.inputs
        key = store.key(card, scorer.configuration(), window, measurement.name, inputs)
        part = store.read(key)
        if part is None:
            began, read = time.monotonic(), scorer.tokens_run
            part = dataclasses.replace(measurement.run(), name=measurement.name, key=key)
            part.tokens_run, part.seconds = scorer.tokens_run - read, time.monotonic() - began
            store.write(part)
        parts.append(part)
    return Scores(
        model=card,
        protocol=plan.record,
        text_fingerprint=text_fingerprint(plan.sample),
        collection_fingerprint=text_fingerprint(plan.documents),
        text_bytes=sum(document.bytes for document in plan.sample),
        documents=len(plan.sample),
        window=window,
        parts=parts,
        versions=versions(VERSIONED),
        notes=[Note(note) for note in plan.notes],
    )


def _training_data(plan: EvaluationPlan, tokenizer: str) -> Path | None:
    """Return the prepared data of the first run, if they exist and have the given tokenizer."""
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


def describe_model(scorer: Scorer, window: int) -> ModelCard:
    """Return the model's sizes, fingerprints and training record; the state's size is measured by filling a cache."""
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
        seed=scorer.source.seed,
        recipe=scorer.source.recipe,
        seconds_trained=scorer.source.seconds_trained,
    )


class PartStore:
    """A store of measured parts: each is written immediately, and read when the same is asked again.

    folder: the folder of the files `<key>.json`, None to store nothing; `taken` counts the parts that were read.
    """

    def __init__(self, folder: Path | None, processes: Processes) -> None:
        self.folder = None if folder is None else folder / "parts"
        self.processes = processes
        self.taken = 0

    def key(self, card: ModelCard, configuration: str, window: int, name: str, inputs: Any) -> str:
        """Return the sha256 of everything that a part depends on: weights, configuration, tokenizer, what is asked."""
        model = [card.fingerprint, configuration, card.tokenizer, card.start_token, window]
        text = json.dumps([FORMAT, model, name, inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> Part | None:
        """Return the part of a key, or None; the main process decides, so that all processes do the same."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.json"
        found: dict[int, str] = {}
        error: ValueError | None = None
        if self.processes.main and path.is_file():
            try:
                found[0] = path.read_text(encoding="utf-8")
            except OSError as caught:
                error = ValueError(f"{path}: cannot be read ({caught}); remove it to measure again")
        texts = self.processes.gather(found, error)
        if not texts:
            return None
        try:
            part = Part.from_json(texts[0])
        except ValueError as caught:
            raise ValueError(f"{path}: is not a part of an evaluation; remove it to measure again") from caught
        self.taken += 1
        return part

    def write(self, part: Part) -> None:
        """Write a part, atomically, from the main process."""
        if self.folder is not None and self.processes.main:
            write_text(self.folder / f"{part.key}.json", part.to_json())

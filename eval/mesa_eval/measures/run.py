"""Ask every model of a plan the same, and keep what was measured.

Every part that was measured is written at once, and taken from there when the same is asked of the same model again, so
an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from rich.console import Console

from mesa_eval.measures.model_record import VERSIONED, describe_model
from mesa_eval.measures.overlap import overlap_notes
from mesa_eval.measures.part_store import PartStore
from mesa_eval.measures.parts import measurements
from mesa_eval.measures.plan import EvaluationPlan
from mesa_eval.measures.scores import Note, Part, Scores
from mesa_eval.reading.documents import text_fingerprint
from mesa_eval.reading.model_source import tokenizer_fingerprint
from mesa_eval.reading.processes import Processes, join_processes
from mesa_eval.reading.scoring import Scorer
from mesalm.versions import versions


def run_plan(plan: EvaluationPlan, out: Path | None) -> list[Scores]:
    """Score every model of a plan, one after another, and write each one's scores as soon as they are there."""
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
                f"what was measured is in {folder}, and the same command goes on from there"
            ) from None
        if folder is not None and processes.main:
            path = scores.write(folder)
            if not quiet:
                again = f", {store.taken} of {len(scores.parts)} parts from an earlier run" if store.taken else ""
                console.print(f"{source.name}: {scores.tokens_run:,} tokens read, scores in {path}{again}")
        results.append(scores)
    return results


def score_model(scorer: Scorer, plan: EvaluationPlan, window: int, store: PartStore | None = None) -> Scores:
    """Measure one model as the plan says; parts that the store holds are not measured again."""
    store = store or PartStore(None, Processes())
    card = describe_model(scorer, window)
    asked = measurements(scorer, window, plan, _training_data(plan, card.tokenizer))
    parts: list[Part] = []
    for number, measurement in enumerate(asked, 1):
        scorer.stage = f"{number}/{len(asked)} "
        key = store.key(card, scorer.configuration(), window, measurement.name, measurement.inputs)
        part = store.read(key)
        if part is None:
            began, read = time.monotonic(), scorer.tokens_run
            found = measurement.run()
            tokens, seconds = scorer.tokens_run - read, time.monotonic() - began
            part = Part(measurement.name, key, **vars(found), tokens_run=tokens, seconds=seconds)
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
        versions=versions(VERSIONED),
        notes=[Note(note) for note in plan.notes],
    )


def _training_data(plan: EvaluationPlan, tokenizer: str) -> Path | None:
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

"""Prompt tuning: learn a soft prefix for a frozen language model with the one training loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mesalm.data.stream import Position, RowStream, epoch_batches
from mesalm.files import writing
from mesalm.journal import Journal
from mesalm.runs import RunRecord, complete_checkpoints
from mesalm.settings import LARGEST_SEED, Settings, SettingsError
from mesalm.train import training
from mesalm.train.launch import end_run, make_accelerator
from mesalm.train.loop import Probe
from mesalm.train.optim import OptimSettings
from mesalm.train.overrides import apply_overrides, parse_override
from mesalm.train.progress import Display
from mesalm.train.randomness import seed_everything
from mesalm.train.run_folder import RunFolder, first_difference
from mesalm.train.schedule import ScheduleSettings, check_warmup
from mesalm.train.sections import CheckpointSettings
from mesalm.tuning.soft_prefix import PrefixedModel, embedding_digest, save_prefix

Row = tuple[list[int], int]
"""Token ids and the index of the first scored token."""


class TuneSettings(Settings):
    """The settings of prefix tuning."""

    vectors: int = Field(default=16, gt=0, description="Vectors of the prefix.")
    init: Literal["shots", "vocabulary"] = Field(
        default="shots", description="Initial vectors: the embeddings of a prompt's tokens, or of random tokens."
    )
    shots: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0, 1, 2, 4],
        min_length=1,
        description="Numbers of demonstrations in the training prompts.",
    )
    rows: int = Field(default=2_000, gt=0, description="Number of training prompts.")
    valid_rows: int = Field(default=64, gt=0, description="Number of validation prompts.")
    steps: int = Field(default=300, gt=0, description="Optimiser steps.")
    batch_rows: int = Field(default=16, gt=0, description="Prompts per step.")
    every: int = Field(default=50, gt=0, description="Steps between validations.")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of prompts, their order and the initial vectors."
    )
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(learning_rate=3e-2, weight_decay=0.0), description="Optimiser."
    )
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings, description="Learning rate.")

    def _check(self) -> None:
        check_warmup(self.schedule, self.steps)


def tune_settings(overrides: Sequence[str]) -> TuneSettings:
    """Return the settings with ``dotted.key=YAML value`` changes. Raises SettingsError, one line."""
    data: dict[str, Any] = TuneSettings().model_dump(mode="json")
    apply_overrides(data, [parse_override(text) for text in overrides], TuneSettings)
    return TuneSettings.build(data)


@torch.no_grad()
def scored_loss(model: nn.Module, rows: Sequence[Row], batch_rows: int) -> float:
    """Return the mean loss of the scored tokens of all rows, in nats."""
    device = next(model.parameters()).device
    total = count = 0.0
    for batch in epoch_batches(rows, batch_rows, collate=collate_pairs):
        scored = int((batch["labels"] != -100).sum())
        total += float(model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss) * scored
        count += scored
    return total / count


def tune_prefix(
    model: nn.Module,
    rows: Sequence[Row],
    valid_rows: Sequence[Row],
    settings: TuneSettings,
    folder: Path,
    record: dict[str, Any],
    *,
    device: str = "auto",
    quiet: bool = False,
    score: Callable[..., float] = scored_loss,
    decorate: Callable[[Path], object] = lambda folder: None,
) -> float:
    """Learn a prefix for a frozen model and save it to ``folder``; return the last validation loss in nats.

    The loss covers each row's tokens from the first scored one on; ``score`` computes it on the validation rows.
    ``decorate`` adds files to the folder, such as the tokenizer, before it counts as finished. The same call resumes
    an interrupted one. Raises Interrupted (a SystemExit) after Ctrl-C or SIGTERM, once a checkpoint is written;
    SettingsError if the folder has a finished prefix, or one started with other settings, tasks or weights, or if
    another process is training it.
    """
    accelerator = make_accelerator(device="cpu" if device == "cpu" else "auto", precision="fp32")
    with ExitStack() as held:
        held.callback(end_run, accelerator)
        files = RunFolder(folder)
        if accelerator.is_main_process:
            held.enter_context(files.locked())
        if (folder / "prefix.json").exists():
            raise SettingsError(f"{folder}: holds a finished prefix; give another --out, or delete it")
        start = {"settings": settings.model_dump(mode="json"), **record, "embedding_sha256": embedding_digest(model)}
        _check_begun(files, start)
        seed_everything(settings.seed)
        prefixed = PrefixedModel(model, _start(model, rows, settings)).to(accelerator.device)
        losses: list[float] = []

        def watch(watched: nn.Module, step: int) -> Iterable[dict[str, Any]]:
            losses.append(score(watched, valid_rows, settings.batch_rows))
            return [{"loss": losses[-1]}]

        with Journal(files.journal if accelerator.is_main_process else None) as journal:
            outcome = training.run(
                prefixed,
                RowStream(
                    rows,
                    Position(settings.seed),
                    settings.batch_rows,
                    rank=accelerator.process_index,
                    world=accelerator.num_processes,
                    micro_rows=max(settings.batch_rows // accelerator.num_processes, 1),
                    collate=collate_pairs,
                ),
                training.RunSettings(
                    steps=settings.steps,
                    optim=settings.optim,
                    schedule=settings.schedule,
                    checkpoint=CheckpointSettings(every=settings.every, keep=1),
                ),
                files,
                journal,
                accelerator=accelerator,
                display=Display(folder.name, settings.steps, enabled=accelerator.is_main_process and not quiet),
                start=start,
                probes=[Probe("valid", settings.every, watch)],
                count_items=lambda batch: int((batch["labels"] != -100).sum()),
            )
            loss = losses[-1] if losses else score(prefixed, valid_rows, settings.batch_rows)
            if accelerator.is_main_process:
                journal.write("end", step=outcome.step, loss=loss, seconds=outcome.seconds)
                with writing(folder):
                    decorate(folder)
                    save_prefix(
                        prefixed, folder, {**record, "settings": settings.model_dump(mode="json"), "loss": loss}
                    )
                shutil.rmtree(files.checkpoints, ignore_errors=True)
        return loss


def _check_begun(files: RunFolder, start: dict[str, Any]) -> None:
    """Raise SettingsError if the folder has a checkpoint of a tuning with other settings."""
    if not complete_checkpoints(files.checkpoints):
        return
    there = RunRecord(files.path).start if files.journal.is_file() else {}
    difference = first_difference({key: there.get(key) for key in start}, json.loads(json.dumps(start)))
    if difference is not None:
        key, old, new = difference
        raise SettingsError(
            f"{files.path}: holds a prefix with other settings, {key} is {old!r} there and {new!r} now; give "
            "another --out, or delete it"
        )


def collate_pairs(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Make a batch of rows of different lengths, padded on the right, where a causal model does not see it."""
    longest = max(len(tokens) for tokens, _ in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for number, (tokens, first) in enumerate(rows):
        input_ids[number, : len(tokens)] = torch.tensor(tokens)
        labels[number, first : len(tokens)] = torch.tensor(tokens[first:])
    return {"input_ids": input_ids, "labels": labels}


def _start(model: Any, rows: Sequence[Row], settings: TuneSettings) -> torch.Tensor:
    """Return the initial vectors, [n, hidden]: embeddings of the longest prompt's tokens, or of random ones."""
    embed = model.get_input_embeddings()
    if settings.init == "vocabulary":
        ids = np.random.RandomState(settings.seed).randint(embed.num_embeddings, size=settings.vectors)
    else:
        tokens, first = max(rows, key=lambda row: row[1])
        ids = np.resize(np.asarray(tokens[:first]), settings.vectors)
    with torch.no_grad():
        return embed(torch.from_numpy(ids.astype(np.int64)).to(embed.weight.device)).float().cpu()

"""The common setup of every kind of run: checkpoints, optimiser and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from mesalm.interrupts import Interrupted
from mesalm.journal import Journal
from mesalm.runs import RunFiles, step_of
from mesalm.settings import SettingsError
from mesalm.train.average import FOLDER, WeightAverage
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.guard import Guard, Verdict
from mesalm.train.launch import broadcast
from mesalm.train.loop import Loop, Outcome, Probe, Stream
from mesalm.train.optim import OptimSettings, build_optimiser
from mesalm.train.progress import Display
from mesalm.train.saving import Sender
from mesalm.train.schedule import ScheduleSettings, learning_rate_factor
from mesalm.train.sections import CheckpointSettings, TrainSettings
from mesalm.train.speeds import local_peak
from mesalm.train.step import Batch


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings that every kind of run has."""

    steps: int
    optim: OptimSettings
    schedule: ScheduleSettings
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    clip: float | None = 1.0
    max_skipped: int = 10
    spikes: Verdict = "accept"
    log_every: int = 10
    compile_model: bool | Literal["blocks"] = False

    @classmethod
    def of(cls, train: TrainSettings, **rest: Any) -> RunSettings:
        """Return the settings of a recipe's section ``train``; ``rest`` are the fields that are not in it."""
        same = train.model_dump(include={"clip", "max_skipped", "spikes", "log_every"})
        return cls(compile_model=train.compile, **same, **rest)


def run(
    model: nn.Module,
    stream: Stream,
    settings: RunSettings,
    files: RunFiles,
    journal: Journal,
    *,
    accelerator: Accelerator,
    display: Display,
    start: Mapping[str, Any],
    probes: Sequence[Probe] = (),
    count_items: Callable[[Batch], int] | None = None,
    enough: Callable[[], bool] | None = None,
    decorate: Callable[[Path], None] | None = None,
    facts: Mapping[str, Any] | None = None,
    origin: Path | None = None,
    average: WeightAverage | None = None,
    uploads: Sender | None = None,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Train a model to the end of its run, from the newest of the run's checkpoints if there is one.

    Without one, training starts at ``origin``, a checkpoint of another run, or from scratch. ``average`` follows the
    weights. ``start``: further fields of the journal's line "start"; ``decorate`` and ``facts`` are passed to
    `Checkpoints`, ``probes``, ``count_items``, ``enough`` and ``uploads`` to `Loop`, as is ``teacher``.

    Raises SettingsError for a setting that the launch does not support; Interrupted (a SystemExit) after Ctrl-C,
    SIGTERM and similar signals, once a checkpoint is written; otherwise as `Loop.fit`.
    """
    kept = settings.checkpoint
    if kept.asynchronous and not accelerator.is_fsdp2:
        raise SettingsError("checkpoint.asynchronous: needs a model sharded by FSDP; leave it out, or launch with FSDP")
    beside = {} if average is None else {FOLDER: average.model}
    checkpoints = Checkpoints(files.checkpoints, decorate=decorate, facts=facts, beside=beside, **kept.model_dump())
    name: str | None = broadcast(accelerator, (found := checkpoints.newest()) and found.name)
    newest = origin if name is None else checkpoints.folder / name
    step = 0 if newest is None else step_of(newest)
    journal.write("start", step=step, steps=settings.steps, **start)

    def learning_rate(step: int) -> float:
        return settings.optim.learning_rate * learning_rate_factor(settings.schedule, step, settings.steps)

    optimiser = build_optimiser(model, settings.optim)
    outcome = Loop(
        model,
        stream,
        optimiser,
        accelerator=accelerator,
        steps=settings.steps,
        learning_rate=learning_rate,
        clip=settings.clip,
        guard=Guard(settings.max_skipped, settings.spikes),
        probes=probes,
        journal=journal,
        log_every=settings.log_every,
        checkpoints=checkpoints,
        resume_from=newest,
        display=display,
        average=average,
        count_items=count_items,
        enough=enough,
        compile_model=settings.compile_model,
        peak=local_peak(accelerator.device),
        uploads=uploads if accelerator.is_main_process else None,
        teacher=teacher,
    ).fit()
    if outcome.interrupted_by is not None:
        display.say(
            f"stopped after step {outcome.step} of {settings.steps}, checkpoint written; run the same command again "
            "to continue"
        )
        raise Interrupted(outcome.interrupted_by)
    return outcome

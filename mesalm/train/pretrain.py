"""Run a language-model recipe: data, model, training loop, final folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesalm.data.corpus_card import CARD, corpus_card
from mesalm.data.prepare import ChangedDataError, check_inputs, prepare
from mesalm.data.prepared import Prepared
from mesalm.data.stream import Position, RowStream
from mesalm.data.text_stream import TextStream, text_stream
from mesalm.files import whole_folder, write_text
from mesalm.journal import Journal
from mesalm.settings import SettingsError
from mesalm.train import training
from mesalm.train.average import WeightAverage
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.initial import earlier_config, initial_model, set_step
from mesalm.train.launch import (
    LaunchError,
    blind_to,
    broadcast,
    data_share,
    emulates_bf16,
    end_run,
    launch_precision,
    make_accelerator,
    share_rows,
)
from mesalm.train.loop import Outcome, Probe
from mesalm.train.machines import prepared_on_each, send_folder
from mesalm.train.plan import make_plan
from mesalm.train.probes import sampling, validation
from mesalm.train.progress import Display, without_bars
from mesalm.train.randomness import seed_everything
from mesalm.train.recipe import Recipe
from mesalm.train.run_folder import PAGE, Resume, Resumption, RunFolder, code_digests, run_page
from mesalm.train.saving import Sender
from mesalm.train.sharded import full_state
from mesalm.train.speeds import device_name, earlier_rate, local_peak
from mesalm.train.watch import Watch, watching
from mesalm.versions import versions

MakeProbe = Callable[..., Callable[[nn.Module, int], Iterable[dict[str, Any]]]]
"""A function that makes the evaluation of a run. It is called with the prepared folder, the tokenizer, the row length,
names of tasks, the number of prompts and (index, count) of the process, and returns a function for `Probe`."""

MakeUploads = Callable[[Recipe, Path], Sender]
"""A function that makes the sender of checkpoints to the Hub from the recipe and the run folder."""


def pretrain(
    recipe: Recipe,
    *,
    resume: Resume = "auto",
    quiet: bool = False,
    train: Callable[..., Outcome] = training.run,
    evaluation: MakeProbe | None = None,
    uploading: MakeUploads | None = None,
) -> Path:
    """Train a language model by its recipe and return the run folder, ``<output_dir>/<name>``.

    ``resume``: "auto" resumes an interrupted run of the same recipe and only reports a finished one; "must" raises an
    error if there is none; "never" renames an earlier folder and starts anew. ``quiet`` prints nothing. ``train``
    replaces `mesalm.train.training.run`. ``evaluation`` is needed for `evaluate.every`, such as
    `mesa_eval.measures.probe.make_probe`; ``uploading`` for `upload.to`, such as `mesalm.hub.upload.make_uploads`.

    Raises Interrupted (a SystemExit) after Ctrl-C, SIGTERM and similar signals, once a checkpoint is written;
    SettingsError for an unsuitable recipe, launch or run folder; CheckpointError for a damaged checkpoint;
    NonFiniteError if weights, or too many losses or gradients in a row, are not finite.
    """
    precision = launch_precision(recipe.train.precision, os.environ)
    launched = precision != "fp32" and recipe.train.precision == "auto"
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
    run = RunFolder(recipe.folder)
    accelerator = make_accelerator(
        device=recipe.train.device, precision=precision, track=recipe.track, folder=run.path, sharding=True
    )
    try:
        share = data_share(accelerator, recipe.parallelism.context)
        recipe.micro_rows(accelerator.num_processes)  # reports its errors before hours of preparing data
        if accelerator.is_fsdp2:
            _check_sharded(recipe)
        display = Display(recipe.name, recipe.steps, enabled=accelerator.is_main_process and not quiet)
        if launched:
            display.say(f"train.precision: {precision}, as accelerate launch says")
        if precision == "bf16" and emulates_bf16(accelerator.device):
            display.say("train.precision: this CPU has no bf16 instructions, so that fp32 is several times faster")
        with (
            watching(accelerator, recipe.train.timeout) as watch,
            run.locked() if accelerator.is_main_process else nullcontext(),
        ):
            plan = _entered(recipe, run, resume, accelerator)
            if recipe.init_from is not None and plan == Resumption():
                earlier_config(recipe)  # so do these
            prepared = _prepared(recipe, run, plan, accelerator, watch, quiet)
            if prepared is None:
                display.say(f"{run.path}: this run is finished; add --resume never to train it again")
            else:
                if accelerator.is_main_process:
                    run.go_on(recipe, plan)
                if plan.resume_from is not None:
                    send_folder(accelerator, plan.resume_from)
                Pretraining(recipe, run, plan, prepared, accelerator, share, display).fit(train, evaluation, uploading)
    finally:
        end_run(accelerator)
    return run.path


def _entered(recipe: Recipe, run: RunFolder, resume: Resume, accelerator: Accelerator) -> Resumption:
    """Enter the run folder on the main process; return the plan to all, with the checkpoint under their own path."""
    plan: Resumption = broadcast(accelerator, run.enter(recipe, resume) if accelerator.is_main_process else None)
    blind = blind_to(accelerator, run.path)
    if blind and accelerator.is_fsdp2:
        raise LaunchError(
            f"{run.path}: does not exist on {blind[0]}; with FSDP all machines write checkpoints, so set output_dir to "
            "a folder on a disk that they share"
        )
    if plan.resume_from is None or str(plan.resume_from) == recipe.branch_from:
        return plan
    return replace(plan, resume_from=run.checkpoints / plan.resume_from.name)


def _check_sharded(recipe: Recipe) -> None:
    """Reject settings that a sharded model does not support."""
    if recipe.train.compile is True:
        raise SettingsError(
            "train.compile: is not supported with FSDP; set train.compile=blocks, or launch without FSDP"
        )


def _prepared(
    recipe: Recipe, run: RunFolder, plan: Resumption, accelerator: Accelerator, watch: Watch | None, quiet: bool
) -> Prepared | None:
    """Prepare and check the data, then open them on every process; for a finished run only check them, return None."""

    def make() -> Path | None:
        try:
            if not plan.finished:
                return prepare(recipe.data, quiet=quiet, expected=plan.trained_on).path.resolve()
            if plan.trained_on is not None:
                check_inputs(recipe.data, plan.trained_on)
        except ChangedDataError as error:
            raise SettingsError(
                f"{run.path}: was trained on other data, {error}; restore the data, give this run another name, or "
                "start over with --resume never, which renames the old folder"
            ) from error
        return None

    path = prepared_on_each(accelerator, watch, recipe.data.cache_folder(), make)
    return None if path is None else Prepared(path, checked=True)


@dataclass(frozen=True)
class Pretraining:
    """One process of a run whose folder and data are ready."""

    recipe: Recipe
    run: RunFolder
    plan: Resumption
    prepared: Prepared
    accelerator: Accelerator
    share: tuple[int, int]
    display: Display

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of the data, None for data that were prepared without one."""
        return self.prepared.tokenizer() if self.prepared.manifest["tokenizer"]["kind"] != "none" else None

    def fit(self, train: Callable[..., Outcome], evaluation: MakeProbe | None, uploading: MakeUploads | None) -> None:
        """Train to the end and write the final folder; arguments as for `pretrain`."""
        recipe, run, accelerator, display = self.recipe, self.run, self.accelerator, self.display
        model = initial_model(self._weights_at_hand(), self.prepared, self.tokenizer)
        model.to(accelerator.device)
        share_rows(model, recipe.parallelism.context)
        if accelerator.is_main_process:
            write_text(run.path / CARD, corpus_card(self.prepared.manifest))
            write_text(run.path / PAGE, run_page(recipe, run.path))
        device, peak = device_name(accelerator.device), local_peak(accelerator.device)
        display.say(f"{recipe.name}: on {device}" + ("" if peak else "; its peak is not in the table, so no MFU"))
        # Dropout must differ between processes; a resumed run restores its saved state instead.
        seed_everything(recipe.seed + accelerator.process_index + 1)
        stream = self._stream()
        set_step(model, recipe, stream.micro_rows)
        average = None if recipe.train.average is None else WeightAverage(model, recipe.train.average)
        if recipe.track:
            # these trackers need the run's name and folder explicitly
            wandb, trackio = {"name": recipe.name, "dir": str(run.path)}, {"name": recipe.name, "resume": "allow"}
            names = {"wandb": wandb, "trackio": trackio}
            accelerator.init_trackers("mesalm", config={"recipe": recipe.to_yaml()}, init_kwargs=names)
        with Journal(run.journal if accelerator.is_main_process else None) as journal:
            self._announce(model, getattr(stream, "total", None), device, getattr(train, "teacher", None))
            outcome = train(
                model,
                stream,
                training.RunSettings.of(
                    recipe.train,
                    steps=recipe.steps,
                    optim=recipe.optim,
                    schedule=recipe.schedule,
                    checkpoint=recipe.checkpoint,
                ),
                run,
                journal,
                accelerator=accelerator,
                display=display,
                start={
                    "recipe": recipe.plain(),
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "prepared": str(self.prepared.path),
                    "data": self.prepared.manifest["hash"],
                    "versions": versions(),
                    "device": device,
                    "world": accelerator.num_processes,
                },
                probes=self._probes(stream, average, evaluation),
                decorate=self._save_tokenizer,
                facts={"data": self.prepared.contents(), "code": code_digests(recipe)},
                origin=None if recipe.branch_from is None else Path(recipe.branch_from),
                average=average,
                uploads=self._uploads(uploading),
            )
            kept = {run.final: model} if average is None else {run.final_average: average.model, run.final: model}
            weights = {folder: full_state(held) for folder, held in kept.items()}
            if accelerator.is_main_process:
                for target, held in kept.items():  # final comes last and whole: a folder that has it is a finished run
                    with whole_folder(target) as folder, without_bars():
                        held.save_pretrained(folder, state_dict=weights[target])
                        self._save_tokenizer(folder)
                        if held is model:
                            numbers = asdict(outcome)
                            del numbers["interrupted_by"]
                            journal.write("end", **numbers)
            accelerator.wait_for_everyone()
            display.say(f"{run.path}: finished, the model is in {run.final}")

    def _weights_at_hand(self) -> Recipe:
        """Return the recipe with the run's own checkpoint as ``init_from``, so that the original is not needed."""
        start = self.plan.resume_from
        if self.recipe.init_from is None or start is None:
            return self.recipe
        Checkpoints(self.run.checkpoints).read_state(start)  # reports damage before transformers reads it
        return self.recipe.model_copy(update={"init_from": str(start)})

    def _announce(self, model: PreTrainedModel, rows: int | None, device: str, teacher: PreTrainedModel | None) -> None:
        """Print where the run resumes, and its plan."""
        recipe, plan, world = self.recipe, self.plan, self.accelerator.num_processes
        if plan.resume_from is not None:
            said = f"{self.run.path}: resuming from {plan.resume_from.name}"
            self.display.say(said + (plan.note and f" to {plan.note}"))
        if self.display.enabled:
            rate, sharded = earlier_rate(recipe, device, world), self.accelerator.is_fsdp2
            expected = make_plan(
                recipe,
                model.config,
                rows=rows,
                valid_rows=len(self.prepared.rows("valid")),
                rate=rate,
                processes=world,
                sharded=sharded,
                begun=plan.step,
                teacher=teacher,
            )
            for line in expected.lines():
                self.display.say(line)

    def _stream(self) -> RowStream | TextStream:
        recipe, prepared, (rank, world) = self.recipe, self.prepared, self.share
        micro_rows = recipe.micro_rows(self.accelerator.num_processes)
        if recipe.data.stream:
            batch_rows = recipe.train.batch_rows
            return text_stream(recipe.data, prepared, batch_rows, rank=rank, world=world, micro_rows=micro_rows)
        return RowStream(
            prepared.rows("train"),
            Position(recipe.seed),
            recipe.train.batch_rows,
            rank=rank,
            world=world,
            micro_rows=micro_rows,
            workers=recipe.train.workers,
            ramp=recipe.ramp.over,
            mixture=prepared.mixture(),
        )

    def _probes(
        self, stream: RowStream | TextStream, average: WeightAverage | None, evaluation: MakeProbe | None
    ) -> list[Probe]:
        recipe, tokenizer, accelerator = self.recipe, self.tokenizer, self.accelerator
        probes = []
        rows = self.prepared.rows("valid")
        wanted = recipe.validate.rows
        if wanted and wanted < len(rows):
            # evenly spaced, since consecutive rows are often from one document
            rows = rows.select([place * len(rows) // wanted for place in range(wanted)])
        if len(rows):
            per_token = self.prepared.manifest["splits"]["valid"]["bytes_per_token"]
            run = validation(rows, stream.micro_rows, per_token, accelerator, self.share)
            probes.append(Probe("valid", recipe.validate.every, run))
            if average is not None:
                probes.append(Probe("valid_average", recipe.validate.every, lambda _, step: run(average.model, step)))
        else:
            self.display.say("data: the valid split has less than one row, so there is no validation")
        if recipe.sample.every:
            if tokenizer is None:
                raise SettingsError("sample.every: there is no tokenizer to write samples with; set it to 0")
            show = sampling(tokenizer, recipe.sample, recipe.seed, main_process=accelerator.is_main_process)
            probes.append(Probe("sample", recipe.sample.every, show))
        if recipe.evaluate.every:
            if tokenizer is None or evaluation is None:
                missing = "a tokenizer" if tokenizer is None else "an evaluation, as `mesalm train` has"
                raise SettingsError(f"evaluate.every: needs {missing}; set it to 0")
            how, place = recipe.evaluate, (accelerator.process_index, accelerator.num_processes)
            ask = evaluation(self.prepared.path, tokenizer, recipe.data.sequence_length, how.tasks, how.prompts, place)
            probes.append(Probe("evaluation", how.every, ask))
        return probes

    def _uploads(self, uploading: MakeUploads | None) -> Sender | None:
        if self.recipe.upload.to is None:
            return None
        if uploading is None:
            raise SettingsError("upload.to: only `mesalm train` uploads checkpoints; set it to none")
        return uploading(self.recipe, self.run.path)

    def _save_tokenizer(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

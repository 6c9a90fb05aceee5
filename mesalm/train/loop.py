"""The training loop: one for all models and tasks, on accelerate.

It knows a model only as a module that, called on a batch (a dict of tensors), returns an object with ``loss``.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mesalm.journal import Journal
from mesalm.train.checkpoint import Checkpoints, load_optimiser, load_random_states, load_weights
from mesalm.train.guard import GradientGuard, NonFiniteGradientError
from mesalm.train.interrupts import Interrupts
from mesalm.train.meters import Speedometer
from mesalm.train.progress import Display
from mesalm.train.randomness import preserved_randomness, random_state, restore_random_state

Batch = dict[str, torch.Tensor]


class Stream(Protocol):
    """Give the micro-batches of one process without end, and say where in the data the next step begins.

    ``position`` has ``to_dict`` and ``from_dict``; setting it moves the stream. See mesalm.data.stream.RowStream.
    """

    position: Any
    micro_batches: int

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Probe:
    """Describe something to be done with the model while it trains, such as validation.

    ``run(model, step)`` is called on every process, the model in evaluation mode and without gradients, and
    returns the fields of any number of journal lines; each gets ``event``, ``step`` and ``tokens``. It is called
    every ``every`` steps (0: never on the way) and, if ``at_end``, after the last step.
    """

    event: str
    every: int
    run: Callable[[nn.Module, int], Iterable[dict[str, Any]]]
    at_end: bool = True


@dataclass
class Tally:
    """Hold what a run has done so far; all of it goes into the checkpoint."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan
    window_loss: float = 0.0
    window_steps: int = 0
    window_tokens: int = 0

    def add(self, tokens: int, loss: float) -> None:
        """Count one more step."""
        self.step += 1
        self.tokens += tokens
        self.loss = loss
        self.window_loss += loss
        self.window_steps += 1
        self.window_tokens += tokens


@dataclass(frozen=True)
class Outcome:
    """Say how a call of `fit` ended: ``interrupted_by`` is a signal's number, None when all steps are done."""

    step: int
    tokens: int
    flops: float
    seconds: float
    loss: float
    skipped: int
    interrupted_by: int | None


def fit(
    model: nn.Module,
    stream: Stream,
    optimiser: torch.optim.Optimizer,
    *,
    accelerator: Accelerator,
    steps: int,
    learning_rate: Callable[[int], float],
    clip: float | None = 1.0,
    guard: GradientGuard | None = None,
    probes: Sequence[Probe] = (),
    journal: Journal | None = None,
    log_every: int = 10,
    checkpoints: Checkpoints | None = None,
    resume_from: Path | None = None,
    display: Display | None = None,
    count_items: Callable[[Batch], int] | None = None,
    enough: Callable[[], bool] | None = None,
    compile_model: bool = False,
) -> Outcome:
    """Train a model until it has made ``steps`` optimiser steps, or until Ctrl-C or SIGTERM.

    ``stream`` shards by itself; model and optimiser go through ``accelerator.prepare`` here, the model being on
    ``accelerator.device`` already. ``learning_rate(step)`` gives the rate of each step, counted from 0. A step's
    loss is the mean over its micro-batches and processes, each weighted alike or, with ``count_items``, by the
    number of scored items that it returns for a batch. ``clip`` bounds the global norm of the gradient. ``enough`` is
    asked after each step and its probes; where it says so on every process, that step was the last.

    ``resume_from`` is a checkpoint of the same run; on the CPU, and with as many processes, the run then goes on
    as if it had never stopped, to the last bit. Probes and data reading cannot change the random state of the run.

    Raises NonFiniteGradientError when ``guard`` gives up, CheckpointError for a checkpoint that does not fit.
    """
    journal = journal or Journal(None)
    guard = guard or GradientGuard(10)
    display = display or Display("train", steps, enabled=False)
    tally = Tally()
    raw_model, raw_optimiser = model, optimiser
    if resume_from is not None:
        tally = _resume(resume_from, checkpoints, model, optimiser, stream, guard)
        if not journal.holds("checkpoint", tally.step):  # the process was killed before it could write the line
            journal.write("checkpoint", step=tally.step, tokens=tally.tokens, folder=resume_from.name)
    if checkpoints is not None and accelerator.is_main_process:
        checkpoints.tidy()
    wrapped: Any = torch.compile(model) if compile_model else model
    wrapped, optimiser = accelerator.prepare(wrapped, optimiser)
    if resume_from is not None:
        # Last of all, since compiling and wrapping may draw random numbers.
        states = load_random_states(resume_from)
        if accelerator.process_index < len(states):
            restore_random_state(states[accelerator.process_index])
    speed = Speedometer(tally.seconds)
    saved_at = tally.step if resume_from is not None else None
    with preserved_randomness(devices=False):
        batches = iter(stream)
    raw_model.train()

    def save() -> None:
        nonlocal saved_at
        if checkpoints is None or saved_at == tally.step:
            return
        saved_at = tally.step
        begun = time.perf_counter()
        tally.seconds = speed.seconds
        states = gather_object([random_state()])
        if accelerator.is_main_process:
            state = {
                "tally": asdict(tally),
                "position": stream.position.to_dict(),
                "guard": guard.state_dict(),
                "journal_offset": journal.sync(),
                "world": accelerator.num_processes,
            }
            folder = checkpoints.save(tally.step, raw_model, raw_optimiser, states, state)
            journal.write("checkpoint", step=tally.step, tokens=tally.tokens, folder=folder.name)
        accelerator.wait_for_everyone()
        speed.pause(time.perf_counter() - begun)

    with Interrupts() as interrupts, display:
        interrupted_by = None
        while tally.step < steps and interrupted_by is None:
            rate = learning_rate(tally.step)
            for group in raw_optimiser.param_groups:
                group["lr"] = rate
            with preserved_randomness(devices=False):
                micro = [_moved(next(batches), accelerator.device) for _ in range(stream.micro_batches)]
            loss = _backward(accelerator, wrapped, micro, count_items)
            norm = _gradient_norm(accelerator, raw_model, clip)
            loss_value, interrupted_by = _agree(accelerator, loss, interrupts.received)
            try:
                accepted = guard.accepts(norm)
            except NonFiniteGradientError as error:
                journal.write("stop", step=tally.step, tokens=tally.tokens, reason=str(error))
                raise
            if accepted:
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            tokens = _tokens(micro) * accelerator.num_processes
            tally.add(tokens, loss_value)
            speed.step(tokens)
            last = tally.step == steps
            if tally.step % log_every == 0 or last:
                tally.flops += tally.window_tokens * _flops_per_token(raw_model, micro)
                fields = _step_fields(tally, rate, norm, guard, speed, raw_model)
                journal.write("step", **fields)
                _track(accelerator, "train", fields, tally.step)
                tally.window_loss, tally.window_steps, tally.window_tokens = 0.0, 0, 0
            display.update(tally.step, loss_value, speed.tokens_per_second, speed.left(steps - tally.step))
            begun = time.perf_counter()
            for probe in probes:
                if (probe.every > 0 and tally.step % probe.every == 0) or (last and probe.at_end):
                    _run_probe(accelerator, probe, raw_model, tally, journal, display)
            speed.pause(time.perf_counter() - begun)
            if enough is not None and enough():
                steps, last = tally.step, True
            if checkpoints is not None and (checkpoints.due(tally.step) or last or interrupted_by):
                save()
        if interrupted_by is not None and tally.step < steps:
            reason = signal.Signals(interrupted_by).name
            journal.write("stop", step=tally.step, tokens=tally.tokens, reason=reason)
        elif tally.step >= steps:
            interrupted_by = None
    # Take the autocast off the model again, for whoever uses it next.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return Outcome(tally.step, tally.tokens, tally.flops, speed.seconds, tally.loss, guard.skipped, interrupted_by)


def _resume(
    folder: Path,
    checkpoints: Checkpoints | None,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    stream: Stream,
    guard: GradientGuard,
) -> Tally:
    state = (checkpoints or Checkpoints(folder.parent)).read_state(folder)
    load_weights(model, folder)
    load_optimiser(optimiser, folder)
    stream.position = type(stream.position).from_dict(state["position"])
    guard.load_state_dict(state["guard"])
    return Tally(**state["tally"])


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _backward(
    accelerator: Accelerator, model: Any, micro: list[Batch], count_items: Callable[[Batch], int] | None
) -> torch.Tensor:
    """Accumulate the gradient of one step; return this process's share of the loss, to be averaged over all."""
    weights = [1.0 / len(micro)] * len(micro)
    if count_items is not None:
        counts = [float(count_items(batch)) for batch in micro]
        total = torch.tensor(sum(counts), device=accelerator.device)
        mean = float(accelerator.reduce(total, "mean"))
        weights = [count / mean if mean > 0 else 0.0 for count in counts]
    loss = torch.zeros((), device=accelerator.device)
    for place, (batch, weight) in enumerate(zip(micro, weights, strict=True)):
        alone = place + 1 < len(micro)
        with accelerator.no_sync(model) if alone else nullcontext():
            part = model(**batch).loss * weight
            accelerator.backward(part)
        loss += part.detach()
    return loss


def _gradient_norm(accelerator: Accelerator, model: nn.Module, clip: float | None) -> float:
    """Return the global norm of the gradient before it is clipped."""
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    return float(norm)


def _agree(accelerator: Accelerator, loss: torch.Tensor, received: int | None) -> tuple[float, int | None]:
    """Average the loss over the processes, and stop on all of them when one of them was told to stop."""
    flags = [float(received == signal.SIGINT), float(received == signal.SIGTERM)]
    shared = torch.cat([loss.reshape(1), torch.tensor(flags, device=loss.device)])
    if accelerator.num_processes > 1:
        shared = accelerator.reduce(shared, "mean")
    value, interrupt, terminate = shared.tolist()
    if terminate > 0:
        return value, int(signal.SIGTERM)
    return value, int(signal.SIGINT) if interrupt > 0 else None


def _tokens(micro: list[Batch]) -> int:
    """Return the tokens of this process's part of a step; rows where a batch has no input_ids."""
    return sum(
        batch["input_ids"].numel() if "input_ids" in batch else len(next(iter(batch.values()))) for batch in micro
    )


def _flops_per_token(model: nn.Module, micro: list[Batch]) -> float:
    """Return what the model says a token of this length costs, solver steps as last measured; 0 if it is silent."""
    flops_per_token = getattr(model, "flops_per_token", None)
    if flops_per_token is None or "input_ids" not in micro[0]:
        return 0.0
    return float(flops_per_token(micro[0]["input_ids"].shape[-1]))


def _step_fields(
    tally: Tally, rate: float, norm: float, guard: GradientGuard, speed: Speedometer, model: nn.Module
) -> dict[str, Any]:
    solver_steps = getattr(model, "solver_steps", None)
    return {
        "step": tally.step,
        "tokens": tally.tokens,
        "loss": tally.window_loss / tally.window_steps,
        "learning_rate": rate,
        "gradient_norm": norm,
        "tokens_per_second": speed.tokens_per_second,
        "seconds": speed.seconds,
        "flops": tally.flops,
        "solver_steps": solver_steps() if callable(solver_steps) else None,
        "skipped": guard.skipped,
    }


def _run_probe(
    accelerator: Accelerator, probe: Probe, model: nn.Module, tally: Tally, journal: Journal, display: Display
) -> None:
    model.eval()
    with preserved_randomness(), torch.no_grad(), accelerator.autocast():
        for fields in probe.run(model, tally.step):
            journal.write(probe.event, step=tally.step, tokens=tally.tokens, **fields)
            _track(accelerator, probe.event, fields, tally.step)
            shown = "  ".join(f"{name} {_short(value)}" for name, value in fields.items())
            display.say(f"step {tally.step}  {probe.event}  {shown}")
    model.train()


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _track(accelerator: Accelerator, event: str, fields: dict[str, Any], step: int) -> None:
    numbers = {f"{event}/{name}": value for name, value in fields.items() if isinstance(value, (int, float))}
    if accelerator.trackers and numbers:
        accelerator.log(numbers, step=step)

"""The training loop: one for all models and tasks, on accelerate.

It knows a model only as a module that, called on a batch (a dict of tensors), returns an object with ``loss``.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mesalm.journal import Journal
from mesalm.train.checkpoint import Checkpoints, load_optimiser, load_random_states, load_weights
from mesalm.train.guard import Guard, NonFiniteError
from mesalm.train.interrupts import Interrupts
from mesalm.train.meters import Speedometer
from mesalm.train.progress import Display
from mesalm.train.randomness import preserved_randomness, random_state, restore_random_state
from mesalm.train.step import (
    Batch,
    backward,
    can_refuse,
    clip_gradient,
    compiled,
    count_tokens,
    flops_per_token,
    moved,
    read,
    read_first_row,
    sample_solver,
    update_where_finite,
)


class Stream(Protocol):
    """Give the micro-batches of one process without end, and say where in the data the next step begins.

    ``position`` has ``to_dict`` and ``from_dict``; setting it moves the stream. A stream that goes through rows again
    and again says in ``epochs`` how often it has done so. See mesalm.data.stream.RowStream.
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

    def due(self, step: int) -> bool:
        """Return whether it is done after this step on the way."""
        return self.every > 0 and step % self.every == 0


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

    def add(self, tokens: int) -> None:
        """Count one more step."""
        self.step += 1
        self.tokens += tokens
        self.window_steps += 1
        self.window_tokens += tokens

    def add_loss(self, loss: float) -> None:
        """Count the loss of one more step."""
        self.loss = loss
        self.window_loss += loss


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
    guard: Guard | None = None,
    probes: Sequence[Probe] = (),
    journal: Journal | None = None,
    log_every: int = 10,
    read_every: int | None = None,
    checkpoints: Checkpoints | None = None,
    resume_from: Path | None = None,
    display: Display | None = None,
    count_items: Callable[[Batch], int] | None = None,
    enough: Callable[[], bool] | None = None,
    compile_model: bool | Literal["blocks"] = False,
) -> Outcome:
    """Train a model until it has made ``steps`` optimiser steps, or until a signal of `mesalm.train.interrupts`.

    ``stream`` shards by itself; model and optimiser go through ``accelerator.prepare`` here, the model being on
    ``accelerator.device`` already. ``learning_rate(step)`` gives the rate of each step, counted from 0. A step's
    loss is the mean over its micro-batches and processes, each weighted alike or, with ``count_items``, by the
    number of scored items that it returns for a batch. ``clip`` bounds the global norm of the gradient. ``enough`` is
    asked after each step and its probes; where it says so on every process, that step was the last.

    Losses and gradient norms stay on the device until they are read together: every ``read_every`` steps, every step
    that is logged, probed or kept in a checkpoint, and the last; by default each step on the CPU, where that waits for
    nothing, and only those steps elsewhere. A step that is not finite is refused all the same, on the device; several
    processes hear a signal when they read. An optimiser that cannot refuse a step by itself has each step read.

    ``resume_from`` is a checkpoint of the same run; on the CPU, and with as many processes, the run then goes on
    as if it had never stopped, to the last bit. Probes and data reading cannot change the random state of the run.

    Raises NonFiniteError, and writes no checkpoint, where weights, optimiser or too many steps in a row are not finite;
    CheckpointError for a checkpoint that does not fit.
    """
    journal = journal or Journal(None)
    guard = guard or Guard(10)
    display = display or Display("train", steps, enabled=False)
    tally = Tally()
    raw_model, raw_optimiser = model, optimiser
    if resume_from is not None:
        tally = _resume(resume_from, checkpoints, model, optimiser, stream, guard)
        if not journal.holds("checkpoint", tally.step):  # the process was killed before it could write the line
            journal.write("checkpoint", step=tally.step, tokens=tally.tokens, folder=resume_from.name)
    if checkpoints is not None and accelerator.is_main_process:
        checkpoints.tidy()
    wrapped: Any = compiled(model, compile_model)
    wrapped, optimiser = accelerator.prepare(wrapped, optimiser)
    if resume_from is not None:
        # Last of all, since compiling and wrapping may draw random numbers.
        states = load_random_states(resume_from)
        if accelerator.process_index < len(states):
            restore_random_state(states[accelerator.process_index])
    speed = Speedometer(tally.seconds)
    saved_at = tally.step if resume_from is not None else None
    if read_every is None:
        read_every = 1 if accelerator.device.type == "cpu" else log_every
    read_each = not can_refuse(raw_optimiser)
    unread: list[tuple[torch.Tensor, torch.Tensor]] = []
    with preserved_randomness(devices=False):
        batches = iter(stream)
    raw_model.train()
    wrapped.train()  # compiled by blocks, it is a module of its own around them

    def epochs() -> float | None:
        return getattr(stream, "epochs", None)

    def save() -> None:
        nonlocal saved_at
        if checkpoints is None or saved_at == tally.step:
            return
        guard.verify(accelerator, raw_model, raw_optimiser, tally.step)
        saved_at = tally.step
        begun = time.perf_counter()
        tally.seconds = speed.seconds
        states = gather_object([random_state()])
        if accelerator.is_main_process:
            state = {
                "tally": asdict(tally),
                "position": stream.position.to_dict(),
                "guard": guard.state_dict(),
                "world": accelerator.num_processes,
            }
            journal.sync()
            folder = checkpoints.save(tally.step, raw_model, raw_optimiser, states, state)
            journal.write("checkpoint", step=tally.step, tokens=tally.tokens, folder=folder.name)
        accelerator.wait_for_everyone()
        speed.pause(time.perf_counter() - begun)

    def settle(micro: list[Batch], number: int, received: int | None) -> tuple[bool, int | None]:
        """Read the losses up to step ``number``; return whether it may update the weights, and a signal."""
        values, interrupted_by = read(accelerator, unread, received)
        accepted = True
        for step, (loss, norm) in enumerate(values, number - len(values) + 1):
            tally.add_loss(loss)
            accepted = guard.accepts(loss, norm)
            if not accepted:
                guard.verify(accelerator, raw_model, raw_optimiser, tally.step)
                guard.judge(accelerator, raw_model, micro, step)
                display.say(f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; skipped")
        unread.clear()
        return accepted, interrupted_by

    def advance(interrupts: Interrupts) -> int | None:
        """Make one step and what belongs after it; return the signal that was heard on one of the processes."""
        nonlocal steps
        rate = learning_rate(tally.step)
        for group in raw_optimiser.param_groups:
            group["lr"] = rate
        with preserved_randomness(devices=False):
            micro = [moved(next(batches), accelerator.device) for _ in range(stream.micro_batches)]
        number = tally.step + 1
        last = number == steps
        logged = last or number % log_every == 0
        due = [probe for probe in probes if probe.due(number) or (last and probe.at_end)]
        kept = checkpoints is not None and checkpoints.due(number)
        solver = sample_solver(raw_model, number // log_every) if logged and accelerator.is_main_process else None
        if solver is not None and compile_model:
            read_first_row(accelerator, raw_model, micro[0])
        loss = backward(accelerator, wrapped, micro, count_items)
        norm = clip_gradient(accelerator, raw_model, clip)
        unread.append((loss, norm))
        # one process alone hears a signal at once
        interrupted_by = interrupts.received if accelerator.num_processes == 1 else None
        if read_each or logged or due or kept or interrupted_by is not None or number % read_every == 0:
            accepted, interrupted_by = settle(micro, number, interrupts.received)
            if accepted:
                optimiser.step()
        else:
            update_where_finite(optimiser, raw_optimiser, loss, norm)
        optimiser.zero_grad(set_to_none=True)
        tokens = count_tokens(micro) * accelerator.num_processes
        tally.add(tokens)
        speed.step(tokens)
        shown = tally.loss
        if logged:
            tally.flops += tally.window_tokens * flops_per_token(raw_model, micro)
            fields = _step_fields(tally, rate, float(norm), guard, speed, epochs()) | _solver_fields(raw_model, solver)
            shown = fields["loss"]
            journal.write("step", **fields)
            _track(accelerator, "train", fields, tally.step)
            tally.window_loss, tally.window_steps, tally.window_tokens = 0.0, 0, 0
        left = speed.left(steps - tally.step)
        display.update(tally.step, shown, speed.tokens_per_second, left, epochs(), logged=logged)
        if due or last:
            guard.verify(accelerator, raw_model, raw_optimiser, tally.step)
        begun = time.perf_counter()
        for probe in due:
            _run_probe(accelerator, probe, raw_model, tally, journal, display)
        speed.pause(time.perf_counter() - begun)
        if enough is not None and enough():
            steps = tally.step
            settle(micro, tally.step, None)
        return interrupted_by

    with Interrupts() as interrupts, display:
        interrupted_by = None
        try:
            guard.verify(accelerator, raw_model, raw_optimiser, tally.step, _other_start(resume_from))
            while tally.step < steps and interrupted_by is None:
                interrupted_by = advance(interrupts)
                if tally.step >= steps and interrupted_by is None:
                    # What was heard in the last step, or in the validation after it, counts too.
                    _, interrupted_by = read(accelerator, [], interrupts.received)
                if checkpoints is not None and (checkpoints.due(tally.step) or tally.step >= steps or interrupted_by):
                    save()
        except NonFiniteError as error:
            journal.write("stop", step=tally.step, tokens=tally.tokens, reason=str(error))
            raise
        if interrupted_by is not None:
            reason = signal.Signals(interrupted_by).name
            journal.write("stop", step=tally.step, tokens=tally.tokens, reason=reason)
            interrupts.answered = True
    # Take the autocast off the model again, for whoever uses it next.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return Outcome(tally.step, tally.tokens, tally.flops, speed.seconds, tally.loss, guard.skipped, interrupted_by)


def _resume(
    folder: Path,
    checkpoints: Checkpoints | None,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    stream: Stream,
    guard: Guard,
) -> Tally:
    state = (checkpoints or Checkpoints(folder.parent)).read_state(folder)
    load_weights(model, folder)
    load_optimiser(optimiser, folder)
    stream.position = type(stream.position).from_dict(state["position"])
    guard.load_state_dict(state["guard"])
    return Tally(**state["tally"])


def _other_start(resume_from: Path | None) -> str:
    if resume_from is None:
        return "begin from other weights"
    return f"delete {resume_from} to go on from the checkpoint before it"


def _step_fields(
    tally: Tally, rate: float, norm: float, guard: Guard, speed: Speedometer, epochs: float | None
) -> dict[str, Any]:
    return {
        "step": tally.step,
        "tokens": tally.tokens,
        "epoch": epochs,
        "loss": tally.window_loss / tally.window_steps,
        "learning_rate": rate,
        "gradient_norm": norm,
        "tokens_per_second": speed.tokens_per_second,
        "seconds": speed.seconds,
        "flops": tally.flops,
        "skipped": guard.skipped,
    }


def _solver_fields(model: nn.Module, sampled: Any) -> dict[str, Any]:
    """Say how the systems were solved: the steps of all layers, and how well the layer that was sampled did."""
    solver_steps = getattr(model, "solver_steps", None)
    sample = None if sampled is None else sampled.solver_sample
    return {
        "solver_steps": solver_steps() if callable(solver_steps) else None,
        "solver_layer": None if sample is None else sample.layer,
        "solver_head": None if sample is None else sample.head,
        "solver_misses": None if sample is None else sample.misses,
        "solver_residual": None if sample is None else sample.residual,
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

"""The training loop for all models and tasks, on accelerate.

A model is any module that, called with a batch (a dict of tensors), returns an object with ``loss``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mesalm.interrupts import Interrupts
from mesalm.journal import Journal
from mesalm.train.average import WeightAverage
from mesalm.train.checkpoint import Checkpoints, load_optimiser, load_random_states, load_weights, move_stream
from mesalm.train.guard import Guard, NonFiniteError
from mesalm.train.progress import Display, Speedometer, Tally
from mesalm.train.randomness import preserved_randomness, restore_random_state
from mesalm.train.recorder import Recorder
from mesalm.train.saving import Saver, Sender
from mesalm.train.step import (
    Batch,
    backward,
    can_refuse,
    clip_gradient,
    compiled,
    count_tokens,
    flops_per_token,
    is_sampled,
    moved,
    read,
    read_first_row,
    sample_solver,
    solver_fields,
    uncompiled,
    update_where_finite,
)


class Stream(Protocol):
    """An endless stream of one process's micro-batches, with the position in the data of the next step.

    A step's rows are split into ``world`` shares; processes that read the same share see the same batches.
    ``position`` has ``to_dict`` and ``from_dict``; assigning it moves the stream. It may differ between processes. A
    stream that repeats its rows counts the passes in ``epochs``. See mesalm.data.stream.RowStream.
    """

    position: Any
    world: int

    @property
    def micro_batches(self) -> int: ...

    def __iter__(self) -> Generator[Batch]: ...


@dataclass(frozen=True)
class Probe:
    """A callback on the model during training, such as validation.

    ``run(model, step)`` is called on every process, with the model in evaluation mode and without gradients, and
    returns the fields of any number of journal lines; ``event``, ``step`` and ``tokens`` are added to each. It is
    called every ``every`` steps (0: never during training) and, if ``at_end``, after the last step.
    """

    event: str
    every: int
    run: Callable[[nn.Module, int], Iterable[dict[str, Any]]]
    at_end: bool = True

    def due(self, step: int) -> bool:
        """Return whether the callback is due after this step."""
        return self.every > 0 and step % self.every == 0


@dataclass(frozen=True)
class Outcome:
    """The result of training: ``interrupted_by`` is a signal number, or None if all steps are done."""

    step: int
    tokens: int
    flops: float
    seconds: float
    loss: float
    skipped: int
    interrupted_by: int | None


@dataclass(frozen=True)
class Due:
    """What is due after the next step."""

    number: int
    last: bool
    logged: bool
    kept: bool
    probes: list[Probe]


@dataclass(kw_only=True, eq=False)
class Loop:
    """The training of a model for ``steps`` steps, or until a signal of `mesalm.interrupts`.

    ``stream`` is sharded already; model and optimiser go through ``accelerator.prepare`` here, and the model must be on
    ``accelerator.device``. ``learning_rate(step)`` gives the rate of each step, counted from 0. A step's
    loss is the mean over its micro-batches and processes, weighted equally or, with ``count_items``, by the
    number of scored items that it returns for a batch. ``clip`` bounds the global norm of the gradient. ``enough`` is
    called after each step and its probes; training ends when it returns True on every process. ``peak``: the device's
    operations per second, from which the share that training reaches is reported; None if unknown.
    ``average`` follows the weights.

    Losses and gradient norms stay on the device and are read together: every ``read_every`` steps, at every step that
    is logged, probed or saved, and at the last. By default that is each step on the CPU, where reading costs nothing,
    and only those steps elsewhere. In between the device itself rejects steps that are not finite; if the optimiser
    cannot do that, each step is read. Several processes respond to a signal when they read.

    ``resume_from``: a checkpoint of the same run. On the CPU, with the same number of processes, the run continues
    bit-identically. Probes and data reading cannot change the random state of the run.
    """

    model: nn.Module = field(kw_only=False)
    stream: Stream = field(kw_only=False)
    optimiser: torch.optim.Optimizer = field(kw_only=False)
    accelerator: Accelerator
    steps: int
    learning_rate: Callable[[int], float]
    clip: float | None = 1.0
    guard: Guard = field(default_factory=lambda: Guard(10))
    probes: Sequence[Probe] = ()
    journal: Journal = field(default_factory=lambda: Journal(None))
    log_every: int = 10
    read_every: int | None = None
    checkpoints: Checkpoints | None = None
    resume_from: Path | None = None
    display: Display = field(default_factory=lambda: Display("train", 0, enabled=False))
    average: WeightAverage | None = None
    count_items: Callable[[Batch], int] | None = None
    enough: Callable[[], bool] | None = None
    compile_model: bool | Literal["blocks"] = False
    peak: float | None = None
    uploads: Sender | None = None
    teacher: nn.Module | None = None

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._recorder = Recorder(self.accelerator, self.journal, self.display, self.tally)
        self._unread: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._saved_at: int | None = None
        self._saver: Saver | None = None
        if self.checkpoints is not None:
            self._saver = Saver(self.accelerator, self.checkpoints, self.journal, self._recorder, self.uploads)

    def fit(self) -> Outcome:
        """Train to the end, or until a signal.

        Raises NonFiniteError, without writing a checkpoint, if weights, optimiser or too many steps in a row are not
        finite; CheckpointError for a checkpoint that does not fit.
        """
        self._begin()
        with closing(self._batches), Interrupts() as interrupts, self.display:
            try:
                self._verify(_other_start(self.resume_from))
                heard = self._run(interrupts)
                if self._saver is not None:
                    self._saver.finish()
            except NonFiniteError as error:
                self._recorder.write("stop", reason=str(error))
                if self._saver is not None:
                    self._saver.finish()
                raise
            if heard is not None:
                self._recorder.write("stop", reason=signal.Signals(heard).name)
                interrupts.answered = True
            elif self.uploads is not None:
                self._recorder.report_all("upload", self.uploads.finish())
        # Remove autocast from the model again, for later use.
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        tally, seconds = self.tally, self._speed.seconds
        return Outcome(tally.step, tally.tokens, tally.flops, seconds, tally.loss, self.guard.skipped, heard)

    def _begin(self) -> None:
        """Load the checkpoint if there is one, and prepare model, optimiser and stream."""
        if self.resume_from is not None:
            self._take_up(self.resume_from)
        if self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.tidy()
        self._wrapped: Any = compiled(self.model, self.compile_model, sharded=self.accelerator.is_fsdp2)
        self._wrapped, self._wrapped_optimiser = self.accelerator.prepare(self._wrapped, self.optimiser)
        if self.average is not None:
            self.average.prepare(self.accelerator)
        if self.resume_from is not None:
            load_optimiser(self.model, self.optimiser, self.resume_from)
            # Last, since compiling and wrapping may draw random numbers.
            states = load_random_states(self.resume_from)
            if self.accelerator.process_index < len(states):
                restore_random_state(states[self.accelerator.process_index])
        if self.average is not None:
            self.average.follow(self.optimiser)  # only now: loading an optimiser's state may make an empty step
        self._speed = Speedometer(self.tally.seconds)
        usual = 1 if self.accelerator.device.type == "cpu" else self.log_every
        self._read_every = (self.read_every or usual) if can_refuse(self.optimiser) else 1
        with preserved_randomness(devices=False):
            self._batches = iter(self.stream)
        self.model.train()
        self._wrapped.train()  # if compiled by blocks, this is a separate module around them

    def _take_up(self, folder: Path) -> None:
        """Load a checkpoint except the states of optimiser and random generators."""
        state = (self.checkpoints or Checkpoints(folder.parent)).read_state(folder)
        load_weights(self.model, folder)
        if self.average is not None:
            self.average.load(folder)
        move_stream(self.stream, state["position"], self.accelerator.process_index, folder)
        self.guard.load_state_dict(state["guard"])
        self.tally = self._recorder.tally = Tally(**state["tally"])
        if self.tally.ended:  # interrupted after its last step, before the final model was written
            self.steps = self.tally.step
        if self.checkpoints is not None and folder.parent != self.checkpoints.folder:
            return  # the checkpoint of another run, from which this one branches
        self._saved_at = self.tally.step
        if self._saver is not None:
            self._saver.resumed(folder)

    def _run(self, interrupts: Interrupts) -> int | None:
        """Run all steps and write their checkpoints; return the signal that ended training early."""
        heard = None
        if self.tally.step == self.steps:  # in a run made shorter this was not the last step before
            missing = self._recorder.missing(probe.event for probe in self.probes if probe.at_end)
            self._probe(Due(self.steps, True, False, False, [probe for probe in self.probes if probe.event in missing]))
        while self.tally.step < self.steps and heard is None:
            heard = self._advance(interrupts)
            if self._saver is not None:
                self._saver.report()
            if self.tally.step >= self.steps and heard is None:
                # A signal during the last step, or the validation after it, counts too.
                _, heard = read(self.accelerator, [], interrupts.received)
            if self.tally.step >= self.steps or heard is not None or self._kept(self.tally.step):
                self._save()
        return heard

    def _advance(self, interrupts: Interrupts) -> int | None:
        """Run one step and what is due after it; return a signal received by any of the processes."""
        due = self._due(self.tally.step + 1)
        rate = self.learning_rate(self.tally.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        with preserved_randomness(devices=False):
            micro = [moved(next(self._batches), self.accelerator.device) for _ in range(self.stream.micro_batches)]
        solver = self._watch_solver(due, micro[0])
        loss = backward(self.accelerator, self._wrapped, micro, self.count_items)
        norm = clip_gradient(self.accelerator, self.model, self.clip)
        heard = self._update(due, micro, loss, norm, interrupts)
        tokens = count_tokens(micro) * self.stream.world
        self.tally.add(tokens)
        self._speed.step(tokens)
        self._show(due, rate, norm, micro, solver)
        self._probe(due)
        if self.enough is not None and self.enough():
            self.steps, self.tally.ended = self.tally.step, True
            self._settle(micro, self.tally.step, None)
        return heard

    def _due(self, number: int) -> Due:
        last = number == self.steps
        probes = [probe for probe in self.probes if probe.due(number) or (last and probe.at_end)]
        return Due(number, last, last or number % self.log_every == 0, self._kept(number), probes)

    def _kept(self, step: int) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(step)

    def _watch_solver(self, due: Due, batch: Batch) -> Any:
        """If the step is logged, let one layer measure the next row it solves, and return the layer; else None."""
        if not due.logged:
            return None
        main = self.accelerator.is_main_process
        solver = sample_solver(self.model, due.number // self.log_every) if main else None
        if self.compile_model and (self.accelerator.is_fsdp2 or is_sampled(self.model)):  # sharded, all processes do
            read_first_row(self.accelerator, self.model, batch)
        return solver

    def _update(
        self, due: Due, micro: list[Batch], loss: torch.Tensor, norm: torch.Tensor, interrupts: Interrupts
    ) -> int | None:
        """Update the weights if loss and norm are finite; return a signal that was received."""
        self._unread.append((loss, norm))
        # a single process responds to a signal at once
        heard = interrupts.received if self.accelerator.num_processes == 1 else None
        read_now = due.number % self._read_every == 0 or heard is not None
        if read_now or due.logged or due.kept or due.probes:
            accepted, heard = self._settle(micro, due.number, interrupts.received)
            if accepted:
                self._wrapped_optimiser.step()
        else:
            update_where_finite(self._wrapped_optimiser, self.optimiser, loss, norm, self.guard.bound)
        self._wrapped_optimiser.zero_grad(set_to_none=True)
        return heard

    def _settle(self, micro: list[Batch], number: int, received: int | None) -> tuple[bool, int | None]:
        """Read the losses up to step ``number``; return whether it may update the weights, and a signal."""
        values, heard = read(self.accelerator, self._unread, received)
        accepted, back = True, False
        for step, (loss, norm) in enumerate(values, number - len(values) + 1):
            self.tally.add_loss(loss)
            accepted = self.guard.accepts(loss, norm)
            if not accepted:
                self._verify()
                self.guard.judge(self.accelerator, self.model, micro, step)
                back |= self._refuse(step, loss, norm)
        self._unread.clear()
        self.guard.renew_bound()
        return accepted and not back, heard  # after a rollback this gradient does not belong to the weights

    def _refuse(self, step: int, loss: float, norm: float) -> bool:
        """Carry out and report the guard's verdict on a rejected step; return whether the weights were rolled back."""
        back = self.guard.verdict(loss, step) == "rollback"
        newest = self._saver.newest() if back and self._saver is not None else None
        if newest is not None:
            load_weights(self.model, newest)
            load_optimiser(self.model, self.optimiser, newest)
            if self.average is not None:
                self.average.load(newest)
        done = "skipped" if newest is None else f"rolled back to {newest.name}"
        self.journal.write("refused", step=step, loss=loss, gradient_norm=norm, done=done)
        self.display.say(f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; {done}")
        return newest is not None

    def _show(self, due: Due, rate: float, norm: torch.Tensor, micro: list[Batch], solver: Any) -> None:
        """Record the step if it is logged, and update the display."""
        left = self._speed.left(self.steps - self.tally.step)
        if due.logged:
            cost = flops_per_token(self.model, micro) + flops_per_token(self.teacher, micro) / 3  # its forward pass
            self.tally.flops += self.tally.window_tokens * cost
            fields = self._numbers(rate, float(norm), cost, left) | solver_fields(self.model, solver)
            self.tally.open_window()
            self._recorder.step(fields)
        else:
            self.display.update(self.tally.step, self.tally.loss, self._speed.tokens_per_second, left, self._epochs())

    def _numbers(self, rate: float, norm: float, cost: float, left: float | None) -> dict[str, Any]:
        speed = self._speed.tokens_per_second
        most = None if self.peak is None or cost == 0.0 else self.peak * self.accelerator.num_processes
        return {
            "step": self.tally.step,
            "tokens": self.tally.tokens,
            "epoch": self._epochs(),
            "loss": self.tally.mean_loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": speed,
            "mfu": None if most is None else cost * speed / most,
            "seconds": self._speed.seconds,
            "seconds_left": left,
            "flops": self.tally.flops,
            "skipped": self.guard.skipped,
        }

    def _epochs(self) -> float | None:
        return getattr(self.stream, "epochs", None)

    def _probe(self, due: Due) -> None:
        """Run the probes that are due, without counting their time in the speed."""
        if due.probes or due.last:
            self._verify()
        begun = time.perf_counter()
        for probe in due.probes:
            self.model.eval()
            with preserved_randomness(), torch.no_grad(), self.accelerator.autocast(), uncompiled():
                self._recorder.report_all(probe.event, probe.run(self.model, self.tally.step))
            self.model.train()
        self._speed.pause(time.perf_counter() - begun)

    def _save(self) -> None:
        """Write a checkpoint of the current step, unless there is one."""
        if self._saver is None or self._saved_at == self.tally.step:
            return
        self._verify()
        self._saved_at = self.tally.step
        begun = time.perf_counter()
        self.tally.seconds = self._speed.seconds
        position = self.stream.position.to_dict()
        self._saver.save(self.model, self.optimiser, position, self.tally, self.guard.state_dict())
        self._speed.pause(time.perf_counter() - begun)

    def _verify(self, way_on: str | None = None) -> None:
        self.guard.verify(self.accelerator, self.model, self.optimiser, self.tally.step, way_on)


def _other_start(resume_from: Path | None) -> str:
    if resume_from is None:
        return "start from other weights"
    return f"delete {resume_from} to resume from the previous checkpoint"

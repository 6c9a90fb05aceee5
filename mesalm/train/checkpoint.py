"""Checkpoints: written whole or not at all, rotated, checked when read.

A checkpoint is a folder ``step-00000100`` with

- ``model.safetensors`` and, for a model of transformers, ``config.json``: a folder `from_pretrained` reads;
- ``average/``: the same files for the running average of the weights, if the run keeps one;
- ``optimiser.pt``: the optimiser's state; in a sharded run the folder ``optimiser`` of torch.distributed.checkpoint;
- ``random.pt``: the random state of every process;
- ``state.json``: step, data position and all other numbers, and size and digest of the files above.

A checkpoint is written to a temporary folder, ``state.json`` last and with its own digest, and renamed when everything
is on the disk. So a folder of the right name that contains ``state.json`` is complete. This also holds if a sharded run
writes in the background; training then continues as soon as everything has been copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import get_rank

from mesalm.files import (
    SealError,
    fingerprints,
    first_damaged,
    partial_of,
    read_sealed,
    whole_folder,
    write_sealed,
)
from mesalm.runs import STATE_FILE, complete_checkpoints, step_of
from mesalm.train.sharded import (
    begin_shards,
    full_state,
    is_sharded,
    load_full,
    load_shards,
    plain_errors,
    save_shards,
    sharded_like,
)

MODEL_FILE = "model.safetensors"
OPTIMISER_FILE = "optimiser.pt"
OPTIMISER_SHARDS = "optimiser"
RANDOM_FILE = "random.pt"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and what to do."""


class Checkpoints:
    """The newest ``keep`` checkpoints of one run, under ``folder``.

    ``every``: steps between checkpoints; 0: only the last. ``decorate`` is called with the folder of each new
    checkpoint before it is complete, to add files such as the tokenizer. ``facts`` about the run, such as its data, are
    stored in the state of each checkpoint. ``beside`` maps names to further models, whose weights are written to
    folders of these names. With ``asynchronous``, checkpoints of a sharded model are written in the background.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int = 0,
        keep: int = 2,
        decorate: Callable[[Path], None] | None = None,
        facts: Mapping[str, Any] | None = None,
        beside: Mapping[str, nn.Module] | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.decorate = decorate
        self.facts = dict(facts or {})
        self.beside = dict(beside or {})
        self.asynchronous = asynchronous
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[Any] = Future()  # the folder of the newest checkpoint, or this process's part of it
        self._written.set_result(None)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step."""
        return self.every > 0 and step % self.every == 0

    def complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first."""
        return complete_checkpoints(self.folder)

    def newest(self) -> Path | None:
        """Return the folder of the newest complete checkpoint, None if there is none."""
        complete = self.complete()
        return complete[-1] if complete else None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        random_states: list[dict[str, Any]],
        state: dict[str, Any],
    ) -> None:
        """Write one checkpoint and delete those beyond ``keep``, or start doing so; `finish` returns its folder.

        Only for the main process; if the model is sharded, the others call `save_part` at the same time.
        """
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._target(step)
        self.tidy()
        models = {"": model, **self.beside}
        weights = {name: kept_state(kept) for name, kept in models.items()}  # here: FSDP2 reshards in state_dict()
        background = self.asynchronous and is_sharded(model)
        with ExitStack() as stack:
            partial = stack.enter_context(whole_folder(target))
            shards: Future[Any] | None = None
            if background:
                weights = deepcopy(weights)
                shards = begin_shards(model, optimiser, partial / OPTIMISER_SHARDS)
            elif is_sharded(model):
                save_shards(model, optimiser, partial / OPTIMISER_SHARDS)
            else:
                _save(optimiser.state_dict(), partial / OPTIMISER_FILE)
            whole = stack.pop_all()

        def write() -> Path:
            with whole:
                if shards is not None:  # first: a folder to which parts are being written cannot be deleted
                    with plain_errors():
                        shards.result()
                for name, kept in models.items():
                    (partial / name).mkdir(exist_ok=True)
                    save_weights(kept, partial / name, weights[name])
                _save(random_states, partial / RANDOM_FILE)
                if self.decorate is not None:
                    self.decorate(partial)
                content = {"step": step, **self.facts, **state, "files": fingerprints(partial)}
                write_sealed(partial / STATE_FILE, content)
            self.tidy()
            return target

        if background:
            self._written = self._thread.submit(write)
        else:
            self._written = Future()
            self._written.set_result(write())

    def save_part(self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Write this process's part of a checkpoint that the main process saves, if the model is sharded."""
        if is_sharded(model):
            self.wait()
            for kept in (model, *self.beside.values()):
                full_state(kept)
            folder = partial_of(self._target(step)) / OPTIMISER_SHARDS
            if self.asynchronous:
                self._written = begin_shards(model, optimiser, folder)
            else:
                save_shards(model, optimiser, folder)

    def writing(self) -> bool:
        """Return whether a checkpoint is being written in the background."""
        return not self._written.done()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raise the error if writing failed."""
        with plain_errors():
            self._written.result()

    def finish(self) -> Path:
        """Wait for the newest checkpoint and return its folder. For the main process, after `save`."""
        folder: Path = self._written.result()
        return folder

    def _target(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def tidy(self) -> None:
        """Delete all but the newest ``keep`` checkpoints, and leftovers of killed processes."""
        for old in self.complete()[: -self.keep]:
            # The state goes first, so that a folder whose deletion is interrupted does not count as a checkpoint.
            (old / STATE_FILE).unlink()
        for path in self.folder.glob("step-*"):
            cut_short = path.suffix in (".partial", ".replaced") or step_of(path) is not None
            if cut_short and path not in self.complete():
                shutil.rmtree(path)

    def read_numbers(self, folder: Path) -> dict[str, Any]:
        """Return the state of a checkpoint without reading its other files. Raises CheckpointError if it is damaged."""
        try:
            state = read_sealed(folder / STATE_FILE)
        except SealError:
            raise CheckpointError(self._damage(folder, STATE_FILE)) from None
        if state["step"] != step_of(folder):
            raise CheckpointError(f"{folder}: contains step {state['step']}; rename the folder back")
        return state

    def read_state(self, folder: Path) -> dict[str, Any]:
        """Check every file of a checkpoint against its digest and return its state.

        Raises CheckpointError that names the damaged file and the previous checkpoint.
        """
        state = self.read_numbers(folder)
        name = first_damaged(folder, state["files"])
        if name is not None:
            raise CheckpointError(self._damage(folder, name))
        return state

    def _damage(self, folder: Path, name: str) -> str:
        earlier = [path for path in self.complete() if (step_of(path) or 0) < (step_of(folder) or 0)]
        if earlier:
            way_on = f"delete {folder} to resume from {earlier[-1].name}"
        else:
            way_on = f"delete {folder} to start over; there is no earlier checkpoint"
        return f"{folder / name} is damaged; {way_on}"


def _save(content: Any, path: Path) -> None:
    # to a Python file, since its errors say what is wrong with the disk
    with path.open("wb") as file:
        torch.save(content, file)


def save_weights(model: nn.Module, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write a model's state as safetensors, with shared weights stored once, and its configuration if it has one.

    ``state``: its `kept_state`, taken before. Then the model's weights are not touched, so it may be training.
    """
    state = kept_state(model) if state is None else state
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / MODEL_FILE, metadata={"format": "pt"})
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)


def kept_state(model: nn.Module) -> dict[str, Any]:
    """Return `full_state` with each tied weight under its first name alone."""
    state = full_state(model)
    return {name: state[name] for name in _kept_names(model) if name in state}


def _kept_names(model: nn.Module) -> list[str]:
    """Return the names of a model's state; tied weights appear under their first name, as in from_pretrained."""
    kept = model.state_dict().keys()
    return [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name in kept]


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load weights written by `save_weights`; raise CheckpointError if names or shapes differ from the model's.

    If the model is sharded, all processes must call it, and the main process reads.
    """
    own = model.state_dict()  # for a sharded model: sharded tensors
    sharded = is_sharded(model)
    if not sharded or get_rank() == 0:
        tensors = load_file(folder / MODEL_FILE)
        missing = [name for name in _kept_names(model) if name not in tensors]
        strange = [name for name in tensors if name not in own]
        shapes = [name for name in tensors if name in own and own[name].shape != tensors[name].shape]
        for names, what in ((missing, "lacks"), (strange, "has an extra weight"), (shapes, "has another shape for")):
            if names:
                raise CheckpointError(
                    f"{folder / MODEL_FILE} {what} {names[0]}; the model must have the run's settings"
                )
    else:
        tensors = {}
    if sharded:
        load_full(model, tensors)
    else:
        model.load_state_dict(tensors, strict=False)


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Load the optimiser's state from a checkpoint; model and checkpoint may each be sharded or not."""
    if (folder / OPTIMISER_SHARDS).is_dir():
        load_shards(model, optimiser, folder / OPTIMISER_SHARDS)
    else:
        state = torch.load(folder / OPTIMISER_FILE, map_location="cpu", weights_only=True)
        optimiser.load_state_dict(sharded_like(optimiser, state))


def move_stream(stream: Any, saved: Any, process: int, folder: Path) -> None:
    """Move a stream to its saved position: one for all processes, or a list with one per process."""
    if isinstance(saved, list):
        saved = saved[min(process, len(saved) - 1)]
    try:
        stream.position = type(stream.position).from_dict(saved)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def load_random_states(folder: Path) -> list[dict[str, Any]]:
    """Return the random state of every process of the run that wrote the checkpoint."""
    return torch.load(folder / RANDOM_FILE, map_location="cpu", weights_only=True)

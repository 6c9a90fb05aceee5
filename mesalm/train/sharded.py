"""Weights, gradients and optimiser sharded over the processes: torch's FSDP2, by accelerate's own code.

A sharded parameter is a DTensor. Everything else of a run is as without sharding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed import ProcessGroup, barrier, group, new_group
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from mesalm.files import writing


def fsdp_plugin(environment: Mapping[str, str]) -> FullyShardedDataParallelPlugin:
    """Return the plugin that the launcher's FSDP settings ask for; blocks are the units unless they say otherwise.

    Each process draws or reads the initial weights itself, so that they are those of a run without sharding.
    """
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy=policy, cpu_ram_efficient_loading=False)


def use_fsdp(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Have an Accelerator shard: accelerate forgets the plugin where the processes are CPU processes.

    Weights stay in float32 and autocast runs in 16 bits, as without sharding: the plugin casts nothing.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState().distributed_type = DistributedType.FSDP  # from which accelerate renews its state now and then
    plugin.mixed_precision_policy = None


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's parameters are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: its shard, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of the whole model; where it is sharded, on the main process and on the CPU.

    All processes call it where the model is sharded; the others get an empty dict.
    """
    if not is_sharded(model):
        return model.state_dict()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if name in state:
            state[name] = state[first]  # weights that are tied share their memory again
    return state


def load_full(model: nn.Module, state: dict[str, Any]) -> None:
    """Load the state of the whole model, the main process's, into a sharded one; all processes call it."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, state, options=options)


class _Writer(dcp.FileSystemWriter):
    """Names the disk error behind an error before it is sent to the other processes, which loses the cause."""

    def write_data(self, *arguments: Any) -> Any:
        with writing(Path(self.path)):
            return super().write_data(*arguments)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the error of the first process that failed, instead of torch's collection, which is not an Exception."""
    try:
        yield
    except CheckpointException as failed:
        _, (error, _) = min(failed.failures.items())
        raise error from failed


def save_shards(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Write an optimiser's state, each process its shards, when all processes are here."""
    barrier()
    with plain_errors():
        dcp.save(get_optimizer_state_dict(model, optimiser), storage_writer=_Writer(folder))


def begin_shards(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> Future[Any]:
    """Copy an optimiser's state when all processes are here and write it in the background, each process its shards.

    The future is done when the parts of all processes are written. They agree on that by a group of their own, beside
    what training sends.
    """
    barrier()
    state = get_optimizer_state_dict(model, optimiser)
    return cast(
        "Future[Any]", dcp.async_save(state, storage_writer=_Writer(folder), process_group=_beside(group.WORLD))
    )


@cache
def _beside(_: ProcessGroup | None) -> ProcessGroup | None:
    return new_group(backend="gloo")


def load_shards(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_shards` wrote, by any number of processes, the model sharded or not. All of them call it."""
    state = get_optimizer_state_dict(model, optimiser)
    with warnings.catch_warnings(), plain_errors():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # torch's own, where one process reads
        dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimiser, state)


def sharded_like(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser with whole tensors as one whose tensors are sharded as its parameters are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for number, kept in state["state"].items():
        like = parameters[number]
        for key, value in kept.items():
            if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
                value = value.to(like.device)
                kept[key] = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return state

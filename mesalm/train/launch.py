"""Making the Accelerator, and refusing a launch that would silently not be what was asked for."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from mesalm.settings import SettingsError

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other; the main one may be preparing a large corpus."""

WORLD_VARIABLES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
"""What launchers that do start several processes leave in the environment of each."""

REPLICATED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)
"""The kinds of run that keep a whole copy of the model in each process, which checkpoints rely on."""


class LaunchError(SettingsError):
    """Report that the processes that run are not those that were asked for."""


def make_accelerator(
    *, device: str, precision: str, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Return an Accelerator for this process.

    ``device`` is "auto" or "cpu"; ``precision`` "fp32" or "bf16"; ``track`` names trackers of accelerate, whose
    files go under ``folder``. Raises LaunchError when accelerate sees other processes than the launcher was asked
    for, and SettingsError for a tracker that is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in track:
        if name not in available:
            raise SettingsError(f"track: {name} is not installed; install it, or leave it out")
    _forget_earlier_run()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(track) or None,
        project_dir=None if folder is None else str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    # The loop divides by the number of micro-batches itself, whatever the environment says.
    accelerator.gradient_accumulation_steps = 1
    check_processes(os.environ, accelerator.num_processes)
    if accelerator.distributed_type not in REPLICATED:
        raise LaunchError(
            f"accelerate: {accelerator.distributed_type.value} is not supported; launch with --multi_gpu, one whole "
            "copy of the model in each process"
        )
    return accelerator


def check_processes(environment: Mapping[str, str], world: int) -> None:
    """Raise LaunchError when the environment asks for more processes than the ``world`` that accelerate sees.

    torchrun and ``accelerate launch --multi_gpu`` state their number of processes in WORLD_SIZE; when accelerate
    sees fewer, as on a machine without GPU, each process would train an unsynchronised copy. ``accelerate launch
    --num_processes N`` without a multi-process option runs one process; it leaves MASTER_ADDR behind, which it
    sets for N > 1 only, without any of the variables that tell a process its rank.
    """
    asked = environment.get("WORLD_SIZE", "")
    if asked.isdecimal() and int(asked) != world:
        raise LaunchError(
            f"{asked} processes were launched but accelerate sees {world}, so each would train a copy of its own; "
            "for several CPU processes add train.device=cpu or set ACCELERATE_USE_CPU=true"
        )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    rankless = not any(name in environment for name in WORLD_VARIABLES)
    if world == 1 and by_accelerate and rankless and "MASTER_ADDR" in environment:
        raise LaunchError(
            "accelerate launch was asked for several processes but started one; launch with --multi_gpu (and "
            "train.device=cpu for CPU processes) or --num_processes 1, with MASTER_ADDR unset"
        )


def end_run(accelerator: Accelerator) -> None:
    """Finish the trackers of a run; the group of processes is kept for a next run and left at exit."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _forget_earlier_run() -> None:
    """Let one process make several Accelerators one after another, as a run of two arms does.

    accelerate keeps its state for the life of the process and refuses a second precision or device. A group of
    processes that there is already is taken over as it is, for it cannot be left and joined again.
    """
    AcceleratorState._reset_state()
    PartialState._reset_state()


@atexit.register
def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

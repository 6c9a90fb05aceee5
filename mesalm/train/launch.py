"""Create the Accelerator, and reject launches that would silently do something else than requested."""

from __future__ import annotations

import atexit
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import nn

from mesalm.settings import SettingsError
from mesalm.train.sharded import fsdp_plugin, use_fsdp
from mesalm.wording import plural

PATIENCE = timedelta(minutes=10)
"""How long processes wait for each other in a step or while one saves."""

WORLD_VARIABLES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
"""Environment variables set by launchers that start several processes."""

REPLICATED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)
"""Distributed types with a full copy of the model in each process."""


FSDP = "ACCELERATE_USE_FSDP"
NO = ("", "0", "false", "no")
SPLIT = "{} is not supported; launch with --multi_gpu (a full copy of the model in each process) and {} unset"
REFUSED = (
    (FSDP, NO, SPLIT.format("FSDP (--use_fsdp)", FSDP)),
    ("ACCELERATE_USE_DEEPSPEED", NO, SPLIT.format("DeepSpeed (--use_deepspeed)", "ACCELERATE_USE_DEEPSPEED")),
    ("ACCELERATE_USE_MEGATRON_LM", NO, SPLIT.format("Megatron-LM (--use_megatron_lm)", "ACCELERATE_USE_MEGATRON_LM")),
    (
        "ACCELERATE_USE_PARALLELISM_CONFIG",
        NO,
        SPLIT.format("a parallelism config (--use_parallelism_config)", "ACCELERATE_USE_PARALLELISM_CONFIG"),
    ),
    ("FSDP_VERSION", ("", "2"), "FSDP 1 (--use_fsdp) is not supported; set fsdp_version: 2"),
    ("FSDP_OFFLOAD_PARAMS", NO, "fsdp_offload_params is not supported; set fsdp_offload_params: false"),
    (
        "FSDP_ACTIVATION_CHECKPOINTING",
        NO,
        "fsdp_activation_checkpointing is not supported; set fsdp_activation_checkpointing: false, and "
        "train.gradient_checkpointing=true instead",
    ),
    (
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        ("", "1"),
        "gradient accumulation ({value} steps) is set by the recipe; leave it out and set train.micro_rows to the rows "
        "that one process runs at once",
    ),
    (
        "ACCELERATE_DYNAMO_BACKEND",
        ("", "no"),
        "--dynamo_backend {value} is set by the recipe; leave it out and set train.compile=true",
    ),
)
"""Environment variables of accelerate launch's options, their supported values, and the message for all others.

Those of FSDP apply only if it is requested.
"""


class LaunchError(SettingsError):
    """The launch differs from the request, or requests something unsupported."""


def make_accelerator(
    *, device: str, precision: str, track: Sequence[str] = (), folder: Path | None = None, sharding: bool = False
) -> Accelerator:
    """Return an Accelerator for this process.

    ``device``: "auto" or "cpu"; ``precision``: "fp32" or "bf16"; ``track``: names of accelerate's trackers, whose
    files go to ``folder``. With ``sharding``, the launcher may request FSDP2.

    Raises LaunchError if accelerate sees another number of processes than requested, if the launcher requests another
    precision or unsupported options, or if accelerate does not shard although requested; SettingsError for a tracker
    that is not installed.
    """
    check_options(os.environ, sharding=sharding)
    launch_precision(precision, os.environ)
    plugin = fsdp_plugin(os.environ) if is_set(os.environ, FSDP) else None
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in track:
        if name not in available:
            raise SettingsError(f"track: {name} is not installed; `pip install {name}`, or leave it out")
    # accelerate keeps its state for the life of the process and rejects a second precision or device; an existing
    # process group is reused, since it cannot be left and joined again
    AcceleratorState._reset_state()
    PartialState._reset_state()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(track) or None,
        project_dir=None if folder is None else str(folder),
        fsdp_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_processes(os.environ, accelerator.num_processes)
    if plugin is not None:
        use_fsdp(accelerator, plugin)
        if not accelerator.is_fsdp2:
            raise LaunchError(
                f"accelerate: FSDP was requested, but accelerate uses {accelerator.distributed_type.value} for "
                f"{plural(accelerator.num_processes, 'process')}; launch several, or unset {FSDP}"
            )
    elif accelerator.distributed_type not in REPLICATED:
        raise LaunchError(
            f"accelerate: {accelerator.distributed_type.value} is not supported; launch with --multi_gpu, a full "
            "copy of the model in each process"
        )
    return accelerator


def launch_precision(precision: str, environment: Mapping[str, str]) -> str:
    """Return "fp32" or "bf16": the recipe's precision, or for "auto" that of accelerate launch, by default fp32.

    Raises LaunchError if the two differ, or if the launcher's precision is not supported.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if asked in ("", "no"):  # accelerate launch sets "no" by default
        return "fp32" if precision == "auto" else precision
    if asked != "bf16":
        raise LaunchError(f"accelerate launch: --mixed_precision {asked} is not supported; use bf16 or no")
    if precision == "fp32":
        raise LaunchError(
            "accelerate launch: --mixed_precision bf16 contradicts fp32, the precision of this training; leave it "
            "out, or set train.precision=bf16 in a recipe"
        )
    return "bf16"


def emulates_bf16(device: torch.device) -> bool:
    """Return whether a device is an x86 CPU without instructions for bfloat16 products, which torch then emulates."""
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and not has


def is_set(environment: Mapping[str, str], variable: str) -> bool:
    """Return whether a boolean environment variable is set to true."""
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def check_options(environment: Mapping[str, str], *, sharding: bool = False) -> None:
    """Raise LaunchError for options of accelerate launch that would change the run or be ignored.

    FSDP2 is allowed with ``sharding``.
    """
    sharded = is_set(environment, FSDP)
    for variable, harmless, fault in REFUSED:
        value = environment.get(variable, "").lower()
        passed = sharding if variable == FSDP else variable.startswith("FSDP_") and not sharded
        if value not in harmless and not passed:
            raise LaunchError(f"accelerate: {fault.format(value=value)}")


def broadcast(accelerator: Accelerator, value: Any) -> Any:
    """Return the main process's value on all processes."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def blind_to(accelerator: Accelerator, folder: Path) -> list[str]:
    """Return, on all processes, the machines from which the main process's ``folder`` cannot be seen."""
    if accelerator.num_processes == 1:
        return []
    path = folder / f".seen-by-all-{broadcast(accelerator, uuid.uuid4().hex)}"
    try:
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        accelerator.wait_for_everyone()
        return [host for host in gather_object([None if path.exists() else platform.node()]) if host is not None]
    finally:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            path.unlink(missing_ok=True)


def check_processes(environment: Mapping[str, str], world: int) -> None:
    """Raise LaunchError if the environment requests more processes than the ``world`` that accelerate sees.

    torchrun and ``accelerate launch --multi_gpu`` put the number of processes in WORLD_SIZE. If accelerate sees fewer,
    as on a machine without GPU, each process would train an unsynchronised copy. ``accelerate launch`` with
    ``--num_processes N`` but no multi-process option runs one process; for N > 1 it sets MASTER_ADDR, but none of the
    variables that tell a process its rank.
    """
    asked = environment.get("WORLD_SIZE", "")
    if asked.isdecimal() and int(asked) != world:
        raise LaunchError(
            f"{asked} processes were launched but accelerate sees {world}, so each would train a separate model; "
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
    """Finish the trackers of a run; the process group stays for a later run, until the process exits."""
    for tracker in accelerator.trackers:
        tracker.finish()


@atexit.register
def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def data_share(accelerator: Accelerator, context: int) -> tuple[int, int]:
    """Return which share of a step's rows this process reads, and the number of shares.

    Each group of ``context`` consecutive processes reads the same share.

    Raises SettingsError if ``context`` does not divide the number of processes, and with FSDP.
    """
    processes = accelerator.num_processes
    if processes % context:
        raise SettingsError(
            f"parallelism.context: {context} does not divide the number of processes, {processes}; launch a multiple "
            f"of {context}, or set parallelism.context=1"
        )
    if context > 1 and accelerator.is_fsdp2:
        raise SettingsError("parallelism.context: is not supported with FSDP; leave out one of the two")
    return accelerator.process_index // context, processes // context


def share_rows(model: nn.Module, context: int) -> None:
    """Let each group of ``context`` consecutive processes share the rows of every forward pass with labels.

    Other passes, such as those of sampling, use one process. Must be called on all processes.
    """
    if context == 1:
        return
    group, _ = dist.new_subgroups(group_size=context)

    def with_context(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return arguments, {**options, "context": group} if "labels" in options else options

    model.register_forward_pre_hook(with_context, with_kwargs=True)

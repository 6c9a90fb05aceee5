"""Context parallelism of a run: which processes share rows, and which rows are a process's share."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from mesalm.settings import SettingsError


def data_share(accelerator: Accelerator, context: int) -> tuple[int, int]:
    """Return which share of a step's rows this process reads, and the number of shares.

    ``context`` processes that follow one another read the same share.

    Raises SettingsError where processes are left over, and with FSDP.
    """
    processes = accelerator.num_processes
    if processes % context:
        raise SettingsError(
            f"parallelism.context: {context} does not divide the number of processes, {processes}; launch a multiple "
            f"of {context}, or set parallelism.context=1"
        )
    if context > 1 and accelerator.is_fsdp2:
        raise SettingsError("parallelism.context: goes without FSDP; leave out the one or the other")
    return accelerator.process_index // context, processes // context


def share_rows(model: nn.Module, context: int) -> None:
    """Let ``context`` processes that follow one another share the rows of every forward pass that has labels.

    Other passes, such as those of sampling, are of one process. To be called on all processes.
    """
    if context == 1:
        return
    group, _ = dist.new_subgroups(group_size=context)

    def with_context(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return arguments, {**options, "context": group} if "labels" in options else options

    model.register_forward_pre_hook(with_context, with_kwargs=True)

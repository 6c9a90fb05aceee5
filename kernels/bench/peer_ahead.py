"""Compile the peer's kernels for sm_90 without a card: every setting that its tuner tries at the size of the targets.

On a card the tuner compiles them one after another, which alone takes minutes.
"""

from __future__ import annotations

import importlib
from typing import Any
from unittest.mock import patch

import torch
from ahead_of_time import AbsentCard
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

MULTIPROCESSORS, SHARED = 132, 232448
"""What the peer asks a card for: an H100 or H200 has both."""


class Hopper(AbsentCard):
    """A stand-in for a card with the properties that the peer reads when it is imported."""

    @property
    def utils(self) -> Hopper:
        """Return what knows the properties."""
        return self

    def get_device_properties(self, _: int) -> dict[str, int]:
        """Return the properties of the one card."""
        return {"multiprocessor_count": MULTIPROCESSORS, "max_shared_mem": SHARED}


def compile_peer(part: int, parts: int) -> set[str]:
    """Compile every `parts`-th kernel of a forward and backward pass into Triton's cache; return the digests."""
    digests: set[str] = set()
    plain = JITFunction.run
    count = 0

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        nonlocal count
        count += 1
        if count % parts == part:
            digests.add(plain(self, *arguments, grid=grid, warmup=True, **settings).hash)

    def try_all(self: Any, *arguments: Any, **settings: Any) -> None:
        for config in self.configs:
            self.fn.run(*arguments, **settings, **config.all_kwargs())

    driver.set_active(Hopper(90))
    with (
        patch.object(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100"),
        patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.object(Autotuner, "run", try_all),
        patch.object(JITFunction, "run", compile_only),
    ):
        function: Any = importlib.import_module("fla.ops.mesa_net").chunk_mesa_net
        shape, size = (8, 4096, 16), 128
        tokens = [torch.empty(*shape, size, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
        gates = [torch.empty(*shape, device="meta", requires_grad=True) for _ in range(2)]
        ridge = torch.empty(shape[2], size, device="meta", requires_grad=True)
        output = function(*tokens, *gates, ridge, max_CG_iteration=30)[0]
        torch.autograd.grad(output, [*tokens, *gates, ridge], torch.empty_like(output))
    return digests

"""Reach the GPU kernels, where the package that holds them is installed."""

from __future__ import annotations

from typing import Any

import torch


def why_not(device: str, dtype: torch.dtype, key_size: int, value_size: int) -> str:
    """Say in a few words why the kernels cannot run a call; an empty string if they can."""
    try:
        from mesa_kernels import supports
    except ImportError:
        return "the package mesa_kernels is not installed"
    return supports(device=device, dtype=dtype, key_size=key_size, value_size=value_size)[1]


def run_kernels(name: str, *operands: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, ...]:
    """Run "forward" or "backward" of the kernels; operands and results as those of `mesa_chunked`."""
    try:
        import mesa_kernels
    except ImportError as missing:
        raise RuntimeError(
            "back end triton: the package mesa_kernels is not installed; use backend='torch'"
        ) from missing
    results: tuple[torch.Tensor, ...] = getattr(mesa_kernels, name)(*operands, **settings)
    return results

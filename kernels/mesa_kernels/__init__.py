"""The GPU kernels of the mesa operator; this module is the interface that the operator calls.

Triton is not imported here, and torch only inside functions, so that importing the package is cheap without a GPU. The
kernels are in files by family: `gates`, `states`, `solver`, `conjugate_gradients`, `read`, `token_gradients`,
`one_step`; `launch` calls them in order, `tuning` chooses their tiles.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16")
SIZES = (1, 256)
"""Smallest and largest supported size of keys and values."""


def supports(*, device: str, dtype: torch.dtype, key_size: int, value_size: int) -> tuple[bool, str]:
    """Return whether kernels can run a call of mesa attention, and if not, why.

    device: a torch device type such as "cuda"; dtype of query, key and value; key_size K and value_size V of
    a head. Returns (True, "") or (False, the reason, for an error message). CPU tensors, in tests, run in Triton's
    interpreter.
    """
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        interpreted = "; on the CPU they run in Triton's interpreter only: set TRITON_INTERPRET=1 before python starts"
        return False, f"kernels run on cuda, not on {device}{interpreted if device == 'cpu' else ''}"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        return False, f"kernels take {', '.join(DTYPES)}, not {name}"
    for what, size in (("keys", key_size), ("values", value_size)):
        if not SIZES[0] <= size <= SIZES[1]:
            return False, f"kernels take {what} of size {SIZES[0]} to {SIZES[1]}, not {size}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return False, f"triton cannot be imported ({error})"
    return True, ""


def _launch(name: str, operands: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """Run a function of `launch` with the operands' GPU as current device, since Triton launches there."""
    import torch

    from . import launch

    if operands[0].device.type == "cpu":
        from . import interpreter

        interpreter.mend()
    with torch.cuda.device_of(operands[0]):
        results: tuple[Tensor, ...] = getattr(launch, name)(*operands, **settings)
    return results


def forward(*operands: Any, **settings: Any) -> tuple[Tensor, ...]:
    """Run a forward pass; arguments and results are those of `launch.forward`."""
    return _launch("forward", operands, settings)


def backward(*operands: Any, **settings: Any) -> tuple[Tensor, ...]:
    """Run a backward pass; arguments and results are those of `launch.backward`."""
    return _launch("backward", operands, settings)


def step(*operands: Any, **settings: Any) -> tuple[Tensor, ...]:
    """Take one step of decoding; arguments and results are those of `launch.step`."""
    return _launch("step", operands, settings)


__all__ = ["DTYPES", "SIZES", "backward", "forward", "step", "supports"]

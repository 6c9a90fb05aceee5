"""Hold the GPU kernels of the mesa operator: this is the face that the operator calls.

No kernel family exists yet, so `supports` answers no. Nothing here imports triton, and torch only inside
functions, so that the package costs a CPU user nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FAMILIES: tuple[str, ...] = ()
"""Names of the kernel families that can run."""


def supports(*, device: str, dtype: torch.dtype, key_size: int, value_size: int) -> tuple[bool, str]:
    """Tell whether kernels can run a call of mesa attention, and if not, why.

    device: a torch device type such as "cuda"; dtype of query, key and value; key_size K and value_size V of
    a head. Returns (True, "") or (False, a reason to show to a user).
    """
    if not FAMILIES:
        return False, "this version of mesa_kernels holds no kernels yet"
    if device != "cuda":
        return False, f"kernels run on cuda, not on {device}"
    return True, ""


__all__ = ["FAMILIES", "supports"]

"""Fix Triton's interpreter, which runs kernels on a CPU but multiplies the bit patterns of bfloat16 operands."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

_make = InterpreterBuilder.create_dot


def _multiply_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    wide = (self.create_fp_to_fp(x, tl.float32, None) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _make(self, *wide, *rest)


def mend() -> None:
    """Make the interpreter multiply the values of bfloat16 operands."""
    InterpreterBuilder.create_dot = _multiply_numbers

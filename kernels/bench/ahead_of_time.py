"""Compile what a call of mesa attention launches, for a card that need not be there, and read the result."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from float32_results import wide_kernels
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mesa_kernels import launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the kernel's name, and what it was specialised for where it serves two ends."""
        kinds = {
            "REVERSE": ("forward", "reverse"),
            "SYMMETRIC": ("", "symmetric"),
            "FLIPPED": ("", "flipped"),
            "ADJOINT": ("", "adjoint"),
            "MARKED": ("", "marked"),
        }
        words = [names[bool(self.arguments[kind])] for kind, names in kinds.items() if kind in self.arguments]
        return " ".join([self.kernel.__name__.removesuffix("_kernel"), *filter(None, words)])

    @property
    def products(self) -> str:
        """Return what the kernel multiplies in."""
        if self.name.startswith("solve") or self.arguments.get("HALF"):
            return "float16"
        return str(self.arguments.get("DOT", "none"))


@dataclass(frozen=True)
class CompiledKernel:
    """What the compiler made of one kernel.

    registers and bytes of stack per thread; shared memory in bytes per program; local loads and stores in the code:
    all, those inside loops, and those inside the loops that lie deepest in others; tensor-core instructions by kind:
    warp-group products (HGMMA) and warp products (HMMA).
    """

    name: str
    products: str
    warps: int
    registers: int
    stack: int
    shared: int
    local: int
    local_in_loops: int
    local_in_deepest: int
    hgmma: int
    hmma: int


class AbsentCard:
    """A stand-in for the driver of a card that need not be there, as far as compiling asks for it."""

    def __init__(self, capability: int) -> None:
        """Be a card of a compute capability, 90 for sm_90."""
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return what is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return a number of the card: Triton keeps what it compiled by it."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return a stream that nothing runs on."""
        return device


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Write down the launches of everything inside, and run none of them."""
    launches: list[Launch] = []

    def record(self: Any, *, grid: Any, warmup: bool, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in list(arguments) if name not in self.arg_names}
        launches.append(Launch(self, arguments, options))

    with patch.object(JITFunction, "run", record):
        yield launches


def list_launches(
    K: int,
    V: int,
    dtype: torch.dtype,
    *,
    batch: int = 8,
    length: int = 4096,
    heads: int = 16,
    groups: int | None = None,
    wide: bool = False,
) -> list[Launch]:
    """List what a forward and backward pass and a step of decoding launch. No memory is touched.

    wide: where the kernels write float32 wherever they would round (`float32_results.py`).
    """
    G = groups or heads
    shapes = [(heads, K), (G, K), (G, V)]
    query, key, value = (torch.empty(batch, length, *shape, dtype=dtype, device="meta") for shape in shapes)
    gates = [torch.empty(batch, length, G, device="meta") for _ in range(2)]
    rest = [torch.empty(*shape, device="meta") for shape in ((G, K), (batch, G, K, K), (batch, G, K, V))]
    operands = (query, key, value, *gates, *rest)
    with recorded() as launches, wide_kernels() if wide else nullcontext():
        output, gram, cross, solution, _ = launch.forward(*operands, tolerance=1e-3, max_steps=4 * K)
        launch.backward(output.to(dtype), gram, cross, *operands, solution, tolerance=1e-3, max_steps=4 * K)
        state = torch.empty(batch, G, K, K + V, device="meta").split((K, V), -1)
        launch.step(*(x[:, :1] for x in operands[:5]), rest[0], *state, tolerance=1e-3, max_steps=4 * K)
    return launches


def compile_launch(launch: Launch, capability: int = 90) -> Any:
    """Compile a launch for a card of a compute capability as Triton's own launcher does, into Triton's cache.

    Launches of one kernel that Triton specialises alike give one and the same object. From here on this process takes
    the card for the one that it has.
    """
    driver.set_active(AbsentCard(capability))
    return launch.kernel.run(**launch.arguments, **launch.options, grid=(1,), warmup=True)


def read_compiled(launch: Launch, compiled: Any) -> CompiledKernel:
    """Read what the compiler made of a launch."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))
    lines = code.splitlines()
    loops = list(_loops(lines))
    local = [place for place, line in enumerate(lines) if re.search(r"\b(LDL|STL)\b", line)]
    depth = [sum(first <= a and b <= last for first, last in loops) for a, b in loops]
    deepest = [loop for loop, d in zip(loops, depth, strict=True) if d == max(depth, default=0)]
    inside, deep = (
        sum(any(first <= place <= last for first, last in some) for place in local) for some in (loops, deepest)
    )
    return CompiledKernel(
        launch.name,
        launch.products,
        int(launch.options.get("num_warps", 4)),
        registers,
        stack,
        compiled.metadata.shared,
        len(local),
        inside,
        deep,
        sum("HGMMA" in line for line in lines),
        sum("HMMA" in line for line in lines),
    )


def _loops(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the lines of every loop: from a label to a later branch back to it."""
    labels = {match.group(1): place for place, line in enumerate(lines) if (match := re.match(r"\s*(\.L\w+):", line))}
    for place, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        # a branch to itself is the padding after the end of a kernel
        if match and labels.get(match.group(1), place) < place - 2:
            yield labels[match.group(1)], place


def _tool(name: str, *words: str) -> str:
    program = TOOLS / name
    if not program.exists():
        path = shutil.which(name)
        if path is None:
            raise ValueError(
                f"{name} is neither in {TOOLS} nor on the path; it comes with triton for Linux and with CUDA"
            )
        program = Path(path)
    return subprocess.run([str(program), *words], capture_output=True, text=True, check=True).stdout

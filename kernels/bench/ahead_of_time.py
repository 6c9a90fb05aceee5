"""Compile what a call of mesa attention launches, for a card that need not be there, and read the result."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mesa_kernels import launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Launch:
    """Hold one launch: the kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the kernel's name, and what it was specialised for where it serves two ends."""
        kinds = {
            "KEY": ("value", "key"),
            "REVERSE": ("forward", "reverse"),
            "SYMMETRIC": ("", "symmetric"),
            "LATER": ("first", "later"),
            "REUSED": ("", "reused"),
        }
        words = [names[bool(self.arguments[kind])] for kind, names in kinds.items() if kind in self.arguments]
        return " ".join([self.kernel.__name__.removesuffix("_kernel"), *filter(None, words)])

    @property
    def products(self) -> str:
        """Return what the kernel multiplies in."""
        return str(self.arguments.get("DOT", "float16" if self.name.startswith("half") else "none"))


@dataclass(frozen=True)
class Reading:
    """Hold what the compiler made of one kernel.

    registers and bytes of stack a thread; shared memory in bytes a program; local loads and stores in the code, all
    and those inside loops; tensor-core instructions by kind: warp-group products (HGMMA) and warp products (HMMA).
    """

    name: str
    products: str
    warps: int
    registers: int
    stack: int
    shared: int
    local: int
    local_in_loops: int
    hgmma: int
    hmma: int


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Write down the launches of everything inside, and run none of them."""
    launches: list[Launch] = []
    plain = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in list(kwargs) if name not in self.arg_names}
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launches.append(Launch(self, arguments, options))

    JITFunction.run = record  # type: ignore[method-assign]
    try:
        yield launches
    finally:
        JITFunction.run = plain  # type: ignore[method-assign]


def list_launches(
    K: int,
    V: int,
    dtype: torch.dtype,
    *,
    batch: int = 8,
    length: int = 4096,
    heads: int = 16,
    groups: int | None = None,
) -> list[Launch]:
    """List what a forward and backward pass and a step of decoding launch, each kernel and specialisation once.

    No memory is touched.
    """
    G = groups or heads
    shapes = [(heads, K), (G, K), (G, V)]
    query, key, value = (torch.empty(batch, length, *shape, dtype=dtype, device="meta") for shape in shapes)
    gates = [torch.empty(batch, length, G, device="meta") for _ in range(2)]
    rest = [torch.empty(*shape, device="meta") for shape in ((G, K), (batch, G, K, K), (batch, G, K, V))]
    operands = (query, key, value, *gates, *rest)
    with recorded() as launches:
        output, gram, cross, solution, _, *factors = launch.forward(*operands, 1e-3, 4 * K)
        launch.backward(output, gram, cross, *operands, solution, *factors, 1e-3, 4 * K)
        state = torch.empty(batch, G, K, K + V, device="meta").split((K, V), -1)
        launch.step(*(x[:, :1] for x in operands[:5]), rest[0], *state, 1e-3, 4 * K)
    once: dict[str, Launch] = {}
    for x in launches:
        once.setdefault(f"{x.name} {specialise(x)}", x)
    return list(once.values())


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Give signature, constants and attributes as Triton's launcher does: aligned pointers, sizes over 16, ones."""
    kernel = launch.kernel
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(kernel.arg_names):
        value = launch.arguments[name]
        if name in fixed or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if not isinstance(value, float) and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, capability: int = 90) -> Any:
    """Compile a launch for a card of a compute capability, as Triton's own launcher would."""
    signature, constants, attributes = specialise(launch)
    source = triton.compiler.ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def read_launch(launch: Launch, capability: int = 90) -> Reading:
    """Compile a launch and read the compiler's output."""
    made = compile_launch(launch, capability)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))  # type: ignore[union-attr]
    lines = code.splitlines()
    loops = list(_loops(lines))
    local = [place for place, line in enumerate(lines) if re.search(r"\b(LDL|STL)\b", line)]
    inside = [place for place in local if any(first <= place <= last for first, last in loops)]
    return Reading(
        launch.name,
        launch.products,
        int(launch.options.get("num_warps", 4)),
        registers,
        stack,
        made.metadata.shared,
        len(local),
        len(inside),
        sum("HGMMA" in line for line in lines),
        sum("HMMA" in line for line in lines),
    )


def _loops(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Give the lines of every loop: from a label to a later branch back to it."""
    labels = {match.group(1): place for place, line in enumerate(lines) if (match := re.match(r"\s*(\.L\w+):", line))}
    for place, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        # a branch to itself is the padding after the end of a kernel
        if match and labels.get(match.group(1), place) < place - 2:
            yield labels[match.group(1)], place


def _tool(name: str, *words: str) -> str:
    program = TOOLS / name
    if not program.exists():
        found = shutil.which(name)
        if found is None:
            raise ValueError(
                f"{name} is neither in {TOOLS} nor on the path; it comes with triton for Linux and with CUDA"
            )
        program = Path(found)
    return subprocess.run([str(program), *words], capture_output=True, text=True, check=True).stdout

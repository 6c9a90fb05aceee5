"""Write what the authors' own functions compute of small hard operands, with gradients; needs their packages.

    git clone https://github.com/awslabs/hybrid-model-factory
    TRITON_INTERPRET=1 PEER/bin/python tests/model/write_peers.py tests/model/peers hybrid-model-factory

This file runs in the peers' environment and imports nothing of this project. Each file in the folder holds, by case,
operands, results, the gradients that arrive at the results and those that the operands get. Gated delta rule and
mesa are the plain references of flash-linear-attention (release 0.6.0), which compute in float32. Gated KalmaNet has no
plain reference: its authors' kernels of hybrid-model-factory (commit 04b6242) solve and differentiate in Triton's
interpreter. Two kernels of flash-linear-attention that they call stop in the interpreter (Triton 3.9), and the states
at the starts of chunks and their gradients are computed here in their place.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from fla.ops.mesa_net.naive import naive_mesa_net_exact
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from triton.runtime.autotuner import Autotuner

HEADS, CHUNK = 2, 64
KALMAN = "training/src/hmf/model/hybrid_zoo/layers/gated_kalmanet/ops/chebyshev"
RATIO, STEPS = 0.02, 30
"""The ridge of gated KalmaNet over the norm of its state, and its number of steps: its layer's defaults."""


class Case(NamedTuple):
    """One call: tokens, different keys (None: all), the kinds of its gates, and whether states precede it."""

    tokens: int
    keys: int | None = None
    forget: str = "mild"
    write: str = "random"
    state: bool = False


CASES = {
    "one token": Case(1),
    "one token after a state": Case(1, state=True),
    "off the chunk": Case(70),
    "three keys, nothing forgotten": Case(70, keys=3, forget="none", write="one", state=True),
    "gates of zero and one": Case(70, keys=8, forget="some", write="zero or one", state=True),
    "restarts": Case(70, forget="restarts", state=True),
}


class Peer(NamedTuple):
    """A function of the operands by name, the sizes of key and value, and what it cannot compute."""

    compute: Callable[[dict[str, Tensor]], list[Tensor]]
    key: int
    value: int
    cases: tuple[str, ...] = tuple(CASES)
    undifferentiated: tuple[str, ...] = ()


def make_operands(case: Case, K: int, V: int, seed: int) -> dict[str, Tensor]:
    """Make operands in float32, keys and queries of length 1, a query near its token's key."""
    generator = torch.Generator().manual_seed(seed)
    T, H = case.tokens, HEADS
    key = normalize(torch.randn(1, T, H, K, generator=generator), dim=-1)
    if case.keys:
        key = key[:, torch.arange(T) % case.keys]
    chance, gate = (torch.rand(1, T, H, generator=generator) for _ in range(2))
    forget = {
        "mild": -0.1 * chance,
        "none": 0 * chance,
        "some": torch.where(chance < 0.5, 0.0, -0.5 * chance),
        "restarts": (-0.1 * chance).masked_fill(chance < 0.1, -torch.inf),
    }[case.forget]
    write = {"random": gate, "one": torch.ones_like(gate), "zero or one": gate.round()}[case.write]
    query = torch.randn(1, T, H, K, generator=generator) / K**0.5 + key
    made = {
        "query": normalize(query, dim=-1),
        "key": key,
        "value": torch.randn(1, T, H, V, generator=generator),
        "log_forget": forget,
        "input_gate": write,
        "mix": torch.rand(1, T, H, generator=generator),
        "ridge": 0.1 + torch.rand(H, K, generator=generator),
    }
    if case.state:
        root = torch.randn(1, H, K, K, generator=generator) / K**0.5
        made |= {"gram": root @ root.mT, "cross": torch.randn(1, H, K, V, generator=generator)}
    return made


def delta(function: Callable[..., Any]) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """Return a call of one of the references of the gated delta rule: output and last state."""

    def compute(x: dict[str, Tensor]) -> list[Tensor]:
        named = {"q": x["query"], "k": x["key"], "v": x["value"], "g": x["log_forget"], "beta": x["input_gate"]}
        return list(function(**named, scale=1.0, initial_state=x.get("cross"), output_final_state=True))

    return compute


def mesa(x: dict[str, Tensor]) -> list[Tensor]:
    """Call the exact reference of the mesa layer: output and last states."""
    tokens = (x["query"], x["key"], x["value"], x["log_forget"], x["ridge"], x["input_gate"])
    return list(naive_mesa_net_exact(*tokens, x.get("gram"), x.get("cross")))


def kalman(solver: ModuleType) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """Return a call of gated KalmaNet: output and last cross state.

    Its layer multiplies keys and values by the gate, so ours is the square of it.
    """

    def compute(x: dict[str, Tensor]) -> list[Tensor]:
        gate = x["input_gate"].unsqueeze(-1)
        key, value, query = (gate * x["key"]).contiguous(), gate * x["value"], x["query"]
        solution, _ = solver.ChebyshevIteration.apply(
            key, query, x["log_forget"], STEPS, RATIO, True, x.get("gram"), CHUNK
        )
        solution.register_hook(lambda gradient: gradient.contiguous())  # the kernels take no other
        read = query + x["mix"].unsqueeze(-1) * (solution - query)
        return list(naive_recurrent_simple_gla(read, key, value, x["log_forget"], 1.0, x.get("cross")))

    return compute


def load_solver(checkout: Path) -> ModuleType:
    """Load the kernels of gated KalmaNet alone, and give them the states that the interpreter cannot compute."""
    package = ModuleType("gated_kalmanet")
    package.__path__ = [str(checkout / KALMAN)]
    sys.modules[package.__name__] = package
    solver = importlib.import_module("gated_kalmanet.chebyshev_iteration")
    solver.chunk_fwd_h, solver.chunk_bwd_dh = chunk_states, chunk_gradients
    return solver


def chunk_states(k: Tensor, v: Tensor, g: Tensor, h0: Tensor | None, **_: Any) -> tuple[Tensor, Tensor]:
    """Return the states at the starts of chunks [B, N, H, K, V] and the last; g are sums from each chunk's start."""
    state = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if h0 is None else h0
    starts = []
    for keys, values, gates in zip(*(x.split(CHUNK, dim=1) for x in (k, v, g)), strict=True):
        starts.append(state)
        last = gates[:, -1:]
        faded = keys * (last - gates).exp().unsqueeze(-1)
        state = state * last[:, 0, :, None, None].exp() + torch.einsum("bthk,bthv->bhkv", faded, values)
    return torch.stack(starts, 1).contiguous(), state


def chunk_gradients(q: Tensor, do: Tensor, g: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Return the gradients of the states at the ends of chunks, [B, N, H, K, V]; none of the first state."""
    gradient = q.new_zeros(*q.shape[:1], *q.shape[2:], do.shape[-1])
    ends = []
    for queries, upstream, gates in reversed(list(zip(*(x.split(CHUNK, dim=1) for x in (q, do, g)), strict=True))):
        ends.append(gradient)
        faded = queries * gates.exp().unsqueeze(-1)
        gradient = gradient * gates[:, -1, :, None, None].exp() + torch.einsum("bthk,bthv->bhkv", faded, upstream)
    return torch.stack(ends[::-1], 1).contiguous(), None


def first_configuration(self: Autotuner, *arguments: Any, **keywords: Any) -> Any:
    """Run a kernel without timing its configurations, which takes a card."""
    self.configs = self.configs[:1]
    return run(self, *arguments, **keywords)


run, Autotuner.run = Autotuner.run, first_configuration


def write(file: Path, peer: Peer) -> None:
    """Write what a peer computes of all its cases."""
    kept = {}
    for name in peer.cases:
        seed = zlib.crc32(name.encode())
        operands = make_operands(CASES[name], peer.key, peer.value, seed)
        leaves = {name: x.requires_grad_() for name, x in operands.items()}
        results = peer.compute(leaves)
        generator = torch.Generator().manual_seed(seed + 1)
        upstream = [torch.randn(x.shape, generator=generator) for x in results]
        gradients = torch.autograd.grad(results, list(leaves.values()), upstream, allow_unused=True)
        for kind, tensors in (("result", results), ("upstream", upstream)):
            kept |= {f"{name}/{kind}/{place}": x.detach().contiguous() for place, x in enumerate(tensors)}
        for operand, gradient in zip(operands, gradients, strict=True):
            if gradient is not None:
                kept[f"{name}/gradient/{operand}"] = gradient.contiguous()
            if gradient is not None or operand in peer.undifferentiated:
                kept[f"{name}/operand/{operand}"] = operands[operand].detach().contiguous()
    save_file(kept, file, metadata={"flash-linear-attention": importlib.metadata.version("flash-linear-attention")})


if __name__ == "__main__":
    folder, checkout = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    write(folder / "delta.safetensors", Peer(delta(naive_recurrent_gated_delta_rule), 4, 3))
    without_restarts = tuple(name for name, case in CASES.items() if case.forget != "restarts")
    write(folder / "delta_chunks.safetensors", Peer(delta(naive_chunk_gated_delta_rule), 4, 3, without_restarts))
    write(folder / "mesa.safetensors", Peer(mesa, 4, 4))
    write(folder / "kalman.safetensors", Peer(kalman(load_solver(checkout)), 16, 3, without_restarts, ("gram",)))

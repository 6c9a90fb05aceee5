"""Check and complete the arguments of the operators.

Shapes, dtypes and devices are always checked. Values (NaN, the range of a gate, the order of cu_seqlens) are checked
only on CPU tensors, because on other devices reading a value waits for the device. They are not checked while torch
traces (there are no values), under function transforms (one tensor may stand for many), or within `unchecked_values`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .operator_records import Tokens
from .operator_transforms import transforms_active

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STATE_DTYPES = (torch.float32, torch.float64)


class Layout(NamedTuple):
    """The sizes of one call: batch, length, query heads, key heads, key size, value size."""

    B: int
    T: int
    H: int
    G: int
    K: int
    V: int


_checked: ContextVar[bool] = ContextVar("checked", default=True)


@contextmanager
def unchecked_values() -> Iterator[None]:
    """Disable the checks of values (NaN, ranges), for a caller that checks the results instead.

    For training: an error on only one of several processes would leave the others waiting, and reading values on a GPU
    forces a synchronisation.
    """
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)


def values_are_checked() -> bool:
    """Return whether invalid values raise an error; False within `unchecked_values` and while torch compiles."""
    return not torch.compiler.is_compiling() and _checked.get()


def _readable(x: Tensor) -> bool:
    """Return whether the values of x may be read."""
    if not values_are_checked() or is_in_torch_dispatch_mode() or transforms_active():
        return False
    return x.device.type == "cpu" and x.numel() > 0


def _fail(name: str, was: object, must: str) -> ValueError:
    return ValueError(f"{name} is {was}: must be {must}")


def _check_tensor(name: str, x: object, shape: str, dims: int) -> None:
    if not isinstance(x, Tensor):
        raise _fail(name, f"a {type(x).__name__}", f"a tensor {shape}")
    if x.dim() != dims:
        raise _fail(name, f"of shape {list(x.shape)}", shape)
    if x.dtype not in DTYPES:
        raise _fail(name, f"of dtype {x.dtype}", "float32, float64, bfloat16 or float16")


def _check_device(name: str, x: Tensor, query: Tensor) -> None:
    if x.device != query.device:
        raise _fail(name, f"on {x.device}", f"on {query.device}, where query is")


def _check_finite(name: str, x: Tensor) -> None:
    # The sum is the cheapest test for NaN and infinity; only if it is not finite look more closely.
    if _readable(x) and not math.isfinite(float(x.detach().sum(dtype=torch.float32))):
        if bool(torch.isnan(x).any()):
            raise _fail(name, "NaN somewhere", "finite")
        if bool(torch.isinf(x).any()):
            raise _fail(name, "infinite somewhere", "finite")


def complete_tokens(tokens: Tokens, cu_seqlens: Tensor | None) -> tuple[Tokens[Tensor], Layout]:
    """Check tokens and cu_seqlens, replace gates of None, and return the sizes too; raise ValueError if invalid."""
    query, key, value, log_forget, input_gate = tokens
    layout = _check_projections(query, key, value, cu_seqlens)
    return Tokens(query, key, value, *_complete_gates(log_forget, input_gate, layout, query)), layout


def _check_projections(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor | None) -> Layout:
    _check_tensor("query", query, "[B, T, H, K]", 4)
    _check_tensor("key", key, "[B, T, G, K]", 4)
    _check_tensor("value", value, "[B, T, G, V]", 4)
    B, T, H, K = query.shape
    G, V = value.shape[2:]
    if key.shape != (B, T, key.shape[2], K):
        raise _fail("key", f"of shape {list(key.shape)}", f"[B, T, G, K] = [{B}, {T}, G, {K}] as query is")
    if value.shape[:3] != key.shape[:3]:
        must = f"[B, T, G, V] = [{B}, {T}, {key.shape[2]}, V] as key is"
        raise _fail("value", f"of shape {list(value.shape)}", must)
    if min(H, G, K, V) == 0:
        raise _fail("query", f"of shape {list(query.shape)} with value {list(value.shape)}", "of sizes above 0")
    if H % G:
        raise _fail("key", f"of {G} heads", f"of a number of heads that divides the {H} heads of query")
    for name, x in (("key", key), ("value", value)):
        _check_device(name, x, query)
        if x.dtype != query.dtype:
            raise _fail(name, f"of dtype {x.dtype}", f"of dtype {query.dtype}, as query is")
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_finite(name, x)
    if cu_seqlens is not None:
        _check_bounds(cu_seqlens, query)
    return Layout(B, T, H, G, K, V)


def _check_bounds(cu_seqlens: Tensor, query: Tensor) -> None:
    B, T = query.shape[:2]
    must = "a one-dimensional int32 or int64 tensor of at least 2 entries"
    if not isinstance(cu_seqlens, Tensor):
        raise _fail("cu_seqlens", f"a {type(cu_seqlens).__name__}", must)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise _fail("cu_seqlens", f"{cu_seqlens.dtype} of shape {list(cu_seqlens.shape)}", must)
    if B != 1:
        raise _fail("query", f"of batch size {B}", "of batch size 1 when cu_seqlens is given")
    if _readable(cu_seqlens):
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != T or any(a > b for a, b in itertools.pairwise(bounds)):
            shown = bounds if len(bounds) <= 8 else [*bounds[:4], "...", *bounds[-3:]]
            raise _fail("cu_seqlens", shown, f"a rising list from 0 to the length {T}")


def _complete_gates(
    log_forget: Tensor | None, input_gate: Tensor | None, layout: Layout, query: Tensor
) -> tuple[Tensor, Tensor]:
    shape = (layout.B, layout.T, layout.G)
    gates: list[Tensor] = []
    for name, gate, default in (("log_forget", log_forget, 0.0), ("input_gate", input_gate, 1.0)):
        if gate is None:
            gates.append(query.new_full(shape, default, dtype=torch.float32))
        else:
            _check_gate(name, gate, shape, "[B, T, G]", query)
            gates.append(gate)
    if log_forget is not None and _readable(log_forget):
        largest = float(log_forget.detach().amax())
        if not largest <= 0.0:
            raise _fail("log_forget", _shown(largest), "at most 0 (a log of a factor in [0, 1])")
    if input_gate is not None:
        _check_share("input_gate", input_gate)
    return gates[0], gates[1]


def check_mix(mix: Tensor, layout: Layout, query: Tensor) -> None:
    """Check the weight `mix` of `kalman_attention`."""
    _check_gate("mix", mix, (layout.B, layout.T, layout.H), "[B, T, H]", query)
    _check_share("mix", mix)


def _check_gate(name: str, gate: Tensor, shape: tuple[int, ...], letters: str, query: Tensor) -> None:
    _check_tensor(name, gate, letters, 3)
    if gate.shape != shape:
        raise _fail(name, f"of shape {list(gate.shape)}", f"{letters} = {list(shape)}")
    _check_device(name, gate, query)


def _check_share(name: str, gate: Tensor) -> None:
    if _readable(gate):
        low, high = (float(x) for x in gate.detach().aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise _fail(name, _shown(low if not low >= 0.0 else high), "between 0 and 1")


def _shown(value: float) -> str:
    return "NaN somewhere" if math.isnan(value) else f"{value:.6g} somewhere"


def complete_ridge(ridge: float | Tensor, layout: Layout, query: Tensor) -> Tensor:
    """Check the ridge and expand it to `[G, K]`, in float32 or better."""
    G, K = layout.G, layout.K
    wanted = "a number, [G] or [G, K]"
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    least, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    must = f"above 0 and finite in {dtype}, {least:.2g} to {most:.2g}"
    if not isinstance(ridge, Tensor):
        if isinstance(ridge, bool) or not isinstance(ridge, (int, float)):
            raise _fail("ridge", f"a {type(ridge).__name__}", wanted)
        if not least <= ridge <= most:
            raise _fail("ridge", ridge, must)
        return query.new_full((G, K), float(ridge), dtype=dtype)
    _check_device("ridge", ridge, query)
    if ridge.dtype not in DTYPES:
        raise _fail("ridge", f"of dtype {ridge.dtype}", "float32, float64, bfloat16 or float16")
    if tuple(ridge.shape) not in ((), (G,), (G, K)):
        raise _fail("ridge", f"of shape {list(ridge.shape)}", f"{wanted} with G = {G} and K = {K}")
    if _readable(ridge):
        low, high = (float(x) for x in ridge.detach().aminmax())
        if not least <= low <= high <= most:
            raise _fail("ridge", _shown(high if least <= low else low), must)
    expanded = ridge.unsqueeze(-1) if ridge.dim() == 1 else ridge
    return expanded.to(dtype).expand(G, K)


def check_state(name: str, state: Tensor, shape: tuple[int, ...], letters: str, query: Tensor) -> None:
    """Check one tensor of an initial state, with one row per sequence."""
    if not isinstance(state, Tensor):
        raise _fail(name, f"a {type(state).__name__}", f"a tensor {letters}")
    if tuple(state.shape) != shape:
        raise _fail(name, f"of shape {list(state.shape)}", f"{letters} = {list(shape)}, one row per sequence")
    if state.dtype not in STATE_DTYPES:
        raise _fail(name, f"of dtype {state.dtype}", "float32 or float64")
    _check_device(name, state, query)
    _check_finite(name, state)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise _fail(name, repr(value), "one of " + ", ".join(repr(choice) for choice in choices))


def exact_for_transforms(backend: str) -> str:
    """Return "exact" for "auto" under a function transform, else `backend`; ValueError if it supports no transforms."""
    if not transforms_active() or backend == "exact":
        return backend
    if backend != "auto":
        must = "'auto' or 'exact' under torch.func and forward-mode differentiation (mesa_backend of a model)"
        raise _fail("backend", repr(backend), must)
    return "exact"


class Padding(NamedTuple):
    """The layout of packed sequences `[1, T, ...]` as a padded batch `[sequences, longest, ...]`."""

    source: Tensor
    valid: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """Return one row per sequence, padded with zeros, which as gates write and forget nothing."""
        rows = x[0][self.source]
        return rows.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (x.dim() - 2)), 0.0)

    def join(self, rows: Tensor) -> Tensor:
        """Undo `spread`."""
        return rows[self.valid].unsqueeze(0)


def separate(tokens: Tokens[Tensor], cu_seqlens: Tensor | None, states: bool) -> tuple[Tokens[Tensor], Padding | None]:
    """Separate packed sequences, by restarts in the row or, with `states`, by giving each a row of its own.

    states: whether the call starts from states or returns them. Also returns the `Padding` that undoes the second.
    """
    if cu_seqlens is None:
        return tokens, None
    if not states:
        return tokens._replace(log_forget=_with_restarts(tokens.log_forget, cu_seqlens)), None
    padding = _pad_sequences(cu_seqlens, tokens.query.device)
    return Tokens(*(padding.spread(x) for x in tokens)), padding


def _pad_sequences(cu_seqlens: Tensor, device: torch.device) -> Padding:
    """Return the layout of the sequences of cu_seqlens as rows of one batch."""
    bounds = cu_seqlens.to(device=device, dtype=torch.int64)
    lengths = bounds[1:] - bounds[:-1]
    longest = int(lengths.max())
    place = torch.arange(longest, device=device)
    valid = place < lengths.unsqueeze(-1)
    source = (bounds[:-1].unsqueeze(-1) + place).masked_fill(~valid, 0)
    return Padding(source, valid)


def _with_restarts(log_forget: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Put a restart (-inf) on the first token of every sequence of `[1, T, G]` gates."""
    T = log_forget.shape[1]
    first = torch.zeros(T + 1, dtype=torch.bool, device=log_forget.device)
    first = first.index_fill(0, cu_seqlens.to(device=first.device, dtype=torch.int64), True)
    return log_forget.masked_fill(first[:T].view(1, T, 1), -torch.inf)

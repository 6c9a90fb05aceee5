"""The states that the scans store, and their gradients, against their recurrence token by token in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mesa_kernels import conjugate_gradients, gates, launch, one_step, read, solver, states, token_gradients
from mesa_kernels.tiles import CHUNK, SIDE

B, T, H, G, K, V = 1, 130, 2, 1, 72, 40


def make_operands(dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = {"query": (H, K), "key": (G, K), "value": (G, V)}
    made = {name: torch.randn(B, T, *shape, generator=generator).to(dtype) for name, shape in tokens.items()}
    made["log_forget"] = -0.1 * torch.rand(B, T, G, generator=generator)
    made["input_gate"] = torch.rand(B, T, G, generator=generator)
    made["ridge"] = 0.5 + torch.rand(G, K, generator=generator)
    made["gram"] = torch.eye(K).expand(B, G, K, K)
    made["cross"] = torch.randn(B, G, K, V, generator=generator)
    return {name: x.to(device) for name, x in made.items()}


def largest_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).abs().max() / exact.abs().max().clamp_min(1e-300))


@pytest.mark.card
@pytest.mark.parametrize(
    ("dtype", "gram_bound", "cross_bound"),
    [(torch.bfloat16, 2.0**-20, 2.0**-15), (torch.float16, 2.0**-20, 2.0**-14), (torch.float32, 2.0**-20, 2.0**-20)],
    ids=str,
)
def test_states_at_chunk_starts(dtype: torch.dtype, gram_bound: float, cross_bound: float, kernels: str) -> None:
    operands = make_operands(dtype, kernels)
    made = launch.prepare(launch.Call(**operands))
    wide = {name: x[0].double().cpu() for name, x in operands.items()}
    right = {"gram": wide["key"], "cross": wide["value"]}
    scale = wide["ridge"].rsqrt()
    bounds = {"gram": gram_bound, "cross": cross_bound}
    units = {"gram": made.gram_unit, "cross": made.cross_unit}
    planes, last = {"gram": made.gram, "cross": made.cross}, {"gram": made.last_gram, "cross": made.last_cross}
    for name in ("gram", "cross"):
        state = wide[name][0]
        for t in range(T):
            if t % CHUNK == 0:
                kept = planes[name][0, t // CHUNK].double().sum(0) * units[name][t // CHUNK]
                root = scale[:, None] * (scale[None, :] if name == "gram" else 1.0)
                assert largest_error(kept, state * root) < bounds[name]
            pair = wide["key"][t, 0][:, None] * right[name][t, 0][None, :]
            state = wide["log_forget"][t].exp() * state + wide["input_gate"][t] * pair
        assert largest_error(last[name][0, 0], state) < bounds[name]


@pytest.mark.card
@pytest.mark.parametrize("size", [1.0, 1e-15, 0.0])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 2.0**-11), (torch.float16, 2.0**-11), (torch.float32, 2.0**-20)], ids=str
)
def test_gradients_at_chunk_ends(dtype: torch.dtype, bound: float, size: float, kernels: str) -> None:
    """Sizes down to where float16 without a unit would hold zeros."""
    operands = make_operands(dtype, kernels)
    made = launch.prepare(launch.Call(**operands))
    generator = torch.Generator().manual_seed(1)
    x, y, d = (size * torch.randn(B, T, H, width, generator=generator) for width in (K, K, V))
    # bfloat16 has the range of float32, float16 has not
    d = (d if dtype != torch.float16 else torch.randn(B, T, H, V, generator=generator) * (size > 0)).to(dtype)
    x_wide, y_wide, d_wide = (rows[0].double() for rows in (x, y, d))
    log = operands["log_forget"][0, :, 0].double().cpu()
    for name, right, right_wide in (("gram adjoint", y, y_wide), ("cross adjoint", d, d_wide)):
        wide = torch.zeros(K, right.shape[-1], dtype=torch.float64)
        ends, unit, first = launch.scan(
            name,
            x.to(kernels),
            right.to(kernels),
            made.gates,
            torch.zeros(B, G, *wide.shape, device=kernels),
            made.sizes,
            made.scale,
        )
        ends = ends.double().cpu()
        if dtype != torch.float32:
            blocks = unit.double().cpu().repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)
            ends *= blocks[:, : wide.shape[0], : wide.shape[1]]
        for t in reversed(range(T)):
            if t == T - 1 or t % CHUNK == CHUNK - 1:
                assert largest_error(ends[t // CHUNK], wide) < bound
            product = sum(x_wide[t, h][:, None] * right_wide[t, h][None, :] for h in range(H))
            wide = log[t].exp() * (wide + (product if name == "cross adjoint" else -0.5 * (product + product.mT)))
        assert largest_error(first[0, 0], wide) < bound


KERNELS: dict[ModuleType, str] = {
    gates: "gate",
    states: "scan",
    solver: "solve",
    conjugate_gradients: "gradient",
    read: "read",
    token_gradients: "token",
    one_step: "one_step",
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_launch_asks_for_more_programs_than_a_card_allows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the three numbers of a CUDA launch only the first may be above 65,535: here are 70,000 sequences."""
    grids: dict[str, tuple[int, ...]] = {}

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids[self.name] = grid
            return lambda *_, **__: None

    for module, name in KERNELS.items():
        monkeypatch.setattr(module, f"{name}_kernel", Recorder(name))
    rows, limits = 70_000, {"tolerance": 1e-4, "max_steps": 9}

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tokens = [meta(rows, 2, 1, size, dtype=dtype) for size in (72, 72, 40)]
    operands = (*tokens, *[meta(rows, 2, 1)] * 2, meta(1, 72), meta(rows, 1, 72, 72), meta(rows, 1, 72, 40))
    output, gram, cross, solution, _ = launch.forward(*operands, **limits)
    launch.backward(output, gram, cross, *operands, solution, **limits)
    launch.step(*(x[:, :1] for x in operands[:5]), *operands[5:], **limits)
    assert set(grids) == set(KERNELS.values()) - ({"solve"} if dtype == torch.float32 else set())
    for name, grid in grids.items():
        assert all(count <= most for count, most in zip(grid, (2**31 - 1, 65_535, 65_535), strict=False)), name

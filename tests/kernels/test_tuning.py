"""Tables of tiles and warps: what is written is read, and goes before the defaults; the tuner takes the fastest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mesa_kernels import launch, tuning
from mesa_kernels.tuning import Choice
from mesalm import mesa_attention


def sizes(device: str, K: int = 100) -> launch.Sizes:
    return launch.Sizes(1, 64, 1, 1, K, 64, True, torch.device(device))


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESALM_TUNED", str(tmp_path / "tuned"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Some Card (80GB)")
    table = tuning.table_file(torch.device("cuda"))
    assert table == tmp_path / "tuned/nvidia-some-card-80gb.json"
    default = tuning.choose("read", sizes("cuda"))
    entry = tuning.describe("read", sizes("cuda"))
    assert entry == "read 128 16 bits"
    other = default._replace(tile=16, warps=2, stages=4)
    tuning.write_table(table, {entry: other}, {entry: 0.5})
    assert tuning.choose("read", sizes("cuda")) == other
    assert tuning.choose("read", sizes("cuda", 64)) == tuning.choose("read", sizes("cpu", 64))
    tuning.write_table(table, {"tokens 64 16 bits": other}, {"tokens 64 16 bits": 0.1})
    assert tuning.choose("read", sizes("cuda")) == other


def test_a_card_is_asked_its_name_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESALM_TUNED", str(tmp_path))
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or "NVIDIA Some Card")
    lengths = [sizes("cuda")._replace(T=length) for length in (64, 65, 4096)]
    assert len({tuning.choose("read", one) for one in lengths}) == 1
    assert len(asked) == 1


def test_the_tuner_takes_the_fastest_that_runs(bench: SimpleNamespace) -> None:
    usual, others = (tuning.choose(name, sizes("cpu")) for name in ("read", "tokens"))
    wanted = Choice(64, usual.dot, 8, 2)

    def time() -> float:
        choice = tuning.choose("read", sizes("cpu"))
        assert tuning.choose("tokens", sizes("cpu")) == others
        if choice.warps == 4:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if choice == wanted else 2.0

    assert bench.tune.best_choice("read", sizes("cpu"), time) == (wanted, 1.0)
    assert tuning.choose("read", sizes("cpu")) == usual


def test_the_tuner_tries_tiles_only_of_kernels_that_read_them(
    kernels: str, tuned: Callable[[dict[str, int]], None]
) -> None:
    shapes = sizes(kernels)
    untiled = {name for name in tuning.DEFAULTS if not tuning.has_tile(name, shapes)}
    assert untiled == {"solve", "tokens"}
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 70, 1, 16, generator=generator).bfloat16().to(kernels) for _ in range(3))

    def gradients() -> list[torch.Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
        mesa_attention(*leaves, ridge=1.0, backend="triton").square().sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    usual = gradients()
    tuned(dict.fromkeys(untiled, 16))
    assert tuning.choose("solve", shapes).tile == 16
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(gradients(), usual, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a card the interpreter does not run")
def test_the_interpreter_multiplies_bfloat16_numbers_outside_of_tests_too() -> None:
    code = (
        "import torch; from mesalm import mesa_attention; torch.manual_seed(0)\n"
        "q, k, v = (torch.randn(1, 70, 1, 16).bfloat16() for _ in range(3))\n"
        "found, exact = (mesa_attention(q, k, v, ridge=1.0, backend=b).float() for b in ('triton', 'exact'))\n"
        "assert (found - exact).norm() < 0.02 * exact.norm(), (found - exact).norm() / exact.norm()"
    )
    variables = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

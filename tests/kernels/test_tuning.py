"""Tables of tiles and warps: what is written is read, and goes before the defaults; the tuner takes the fastest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mesa_kernels import launch, tuning
from mesa_kernels.tuning import Choice


def sizes(device: str, K: int = 100) -> launch.Sizes:
    return launch.Sizes(1, 64, 1, 1, K, 64, True, torch.device(device))


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "tuned")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Some Card (80GB)")
    card = tuning.card_name(torch.device("cuda"))
    assert card == "nvidia-some-card-80gb"
    tuning.load_table.cache_clear()
    default = tuning.choose("read", sizes("cuda"))
    entry = tuning.describe("read", sizes("cuda"))
    assert entry == "read 128 16 bits"
    other = default._replace(tile=16, warps=2, stages=4)
    tuning.write_table(card, {entry: other}, {entry: 0.5})
    assert tuning.choose("read", sizes("cuda")) == other
    assert tuning.choose("read", sizes("cuda", 64)) == tuning.choose("read", sizes("cpu", 64))
    tuning.write_table(card, {"tokens 64 16 bits": other}, {"tokens 64 16 bits": 0.1})
    assert tuning.choose("read", sizes("cuda")) == other
    tuning.load_table.cache_clear()


def test_the_tuner_takes_the_fastest_that_runs(bench: SimpleNamespace) -> None:
    usual = tuning.choose("read", sizes("cpu"))
    wanted = Choice(64, usual.dot, 8, 2)

    def time() -> float:
        choice = launch.choose("read", sizes("cpu"))
        assert launch.choose("tokens", sizes("cpu")) == tuning.choose("tokens", sizes("cpu"))
        if choice.warps == 4:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if choice == wanted else 2.0

    assert bench.tune.best_choice("read", usual, time) == (wanted, 1.0)
    assert launch.choose is tuning.choose

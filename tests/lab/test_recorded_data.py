"""The recorded operands that tests and benchmarks read are what training made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesalm.lab.inspection.recorded import load_recorded, recorded_metadata

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(("name", "length"), [("recorded_short", 256), ("recorded_long", 2048)])
def test_recorded_operands_are_those_of_a_trained_model(name: str, length: int) -> None:
    file = DATA / f"{name}.safetensors"
    assert file.stat().st_size < 3e6
    metadata = recorded_metadata(file)
    layers = load_recorded(file)
    assert len(layers) == len(metadata["heads"])
    assert metadata["unit_norm"] is True
    spread = []
    for operands in layers:
        _, T, G, K = operands["key"].shape
        assert length == T == metadata["tokens"]
        assert operands["query"].shape == operands["value"].shape == (1, T, G, K)
        assert operands["ridge"].shape == (G, K)
        assert float((operands["query"].norm(dim=-1) - 1).abs().max()) < 1e-6
        assert bool((operands["log_forget"] < 0).all())
        assert bool(((operands["input_gate"] > 0) & (operands["input_gate"] < 1)).all())
        assert float(operands["ridge"].min()) > 0.25  # the floor of the ridge
        spread += operands["log_forget"].mean(1).flatten().tolist()
    # heads that remember for long and heads that forget at once, both of which a solver must bear
    assert max(spread) > -1 / 25
    assert min(spread) < -1 / 5
    assert str(Path.home()) not in json.dumps(metadata)

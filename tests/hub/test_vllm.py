"""vLLM's own engine writes what `generate` writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("vllm_greedy.py")


def test_the_entry_point_names_a_function_that_vllm_calls() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["vllm.general_plugins"]["mesalm"].split(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is an extra with a torch of its own")
@pytest.mark.parametrize("mixers", [("mesa", "mesa"), ("mesa", "softmax"), ("delta", "softmax", "delta")])
def test_the_engine_writes_what_generate_writes(mixers: tuple[str, ...], tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(tmp_path / "model"), *mixers],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"},
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    written = json.loads(result.stdout.splitlines()[-1])
    assert written["vllm"] == written["generate"]
    assert len({tuple(row) for row in written["vllm"]}) > 1
    assert max(len(set(row)) for row in written["vllm"]) > 3  # no model that repeats itself whatever it has read

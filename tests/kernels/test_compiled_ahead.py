"""Read from the compiler, without a card, what kernels become on sm_90, in a process that does not interpret them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "kernels/bench"


def read_table(*words: str) -> list[dict[str, str]]:
    """Run the report and return its rows."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCH / "compile_report.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_light_kernels_keep_to_registers_and_use_warp_group_products(dtype: str) -> None:
    rows = read_table("--size", "64", "--dtype", dtype, "--only", "gate", "scan forward", "price", "one_step")
    assert {row["kernel"] for row in rows} >= {"gate", "scan forward", "price", "gate_gradient", "one_step"}
    for row in rows:
        assert row["local in loops"] == "0", row
        assert row["hmma"] == "0", row
    assert all(int(row["hgmma"]) > 0 for row in rows if row["kernel"].startswith("scan"))


@pytest.mark.slow
def test_the_fast_path_of_heads_of_128_does_not_spill_in_loops() -> None:
    rows = read_table("--size", "128", "--dtype", "bfloat16", "--only", "half", "residual", "scan")
    for row in rows:
        assert row["local in loops"] == "0", row
        assert int(row["hgmma"]) > 0, row


def test_the_report_refuses_to_interpret() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(BENCH / "compile_report.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "compile_report: TRITON_INTERPRET is set, under which nothing is compiled: unset it\n"

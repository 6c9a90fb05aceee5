"""Read from the compiler, without a card, what kernels become on sm_90, in a process that does not interpret them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def assert_kept_in_registers(rows: list[dict[str, str]]) -> None:
    """Hold kernels to registers inside loops, and their products to warp groups."""
    for row in rows:
        # a pass of the solver, which looks at all rows, may reach for memory, a step may not; Triton 3.7 also takes one
        # number per block of columns from memory where all registers hold the float32 operands of the tokens' gradients
        outer = row["kernel"].startswith("solve") or (row["kernel"], row["inputs"]) == ("token", "float32")
        assert row["local in deepest" if outer else "local in loops"] == "0", row
        assert int(row["local in loops"]) <= 1 or row["kernel"] != "token", row
        if row["products"] != "none":
            assert int(row["hgmma"]) > 0, row
        assert row["hmma"] == "0", row


@pytest.mark.slow
def test_light_kernels_of_heads_of_64() -> None:
    rows = read_table("--size", "64", "--dtype", "bfloat16", "--only", "gate", "scan forward", "read", "one_step")
    assert {row["kernel"] for row in rows} >= {"gate", "scan forward", "read marked", "one_step"}
    assert {row["products"] for row in rows} == {"none", "tf32x3", "bfloat16"}
    assert_kept_in_registers(rows)


@pytest.mark.slow
def test_the_float32_solver_of_heads_of_128() -> None:
    rows = read_table("--size", "128", "--dtype", "float32", "--only", "gradient")
    assert [row["kernel"] for row in rows] == ["gradient"]
    assert_kept_in_registers(rows)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_every_kernel(size: int, dtype: str) -> None:
    rows = read_table("--size", str(size), "--dtype", dtype)
    on_chip = dtype != "float32" and size <= 128
    solvers = {"solve", "solve adjoint", "gradient marked", "read marked"} if on_chip else {"gradient", "read"}
    assert {row["kernel"] for row in rows} >= solvers | {"scan reverse symmetric", "token"}
    assert_kept_in_registers(rows)


def test_programs_that_compile_or_count_refuse_to_interpret(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for program, what in (("compile_report", "nothing would be compiled"), ("count_memory", "kernels would run")):
        assert getattr(bench, program).main([]) == 2
        assert capsys.readouterr().err == f"{program}: TRITON_INTERPRET is set, so {what}: unset it\n"

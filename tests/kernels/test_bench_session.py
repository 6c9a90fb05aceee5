"""The programme for a borrowed card: what it plans, what it keeps when steps fail or are cut, and what is carried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mesa_kernels

ROOT = Path(__file__).parents[2]
# a job in the background inherits that the signal is ignored
HEEDS = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nprint('begun', flush=True)\n"
WAITS = HEEDS + "try: time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')"


def read_archive(file: Path) -> dict[str, str]:
    """Give the files of an archive by name."""
    with tarfile.open(file) as archive:
        return {name: archive.extractfile(name).read().decode() for name in archive.getnames()}


def session(bench: SimpleNamespace, folder: Path) -> Any:
    return bench.gpu_session.Session(folder, folder / "carried", True, dict(os.environ))


def test_commands_are_known_to_their_programs(bench: SimpleNamespace, tmp_path: Path) -> None:
    for step in bench.steps.STEPS:
        for rehearsed in (False, True):
            _, program, *words = step.command(tmp_path, tmp_path, rehearsed)
            if program.startswith("kernels/bench") and "parse" in dir(getattr(bench, Path(program).stem)):
                if "--help" in words:
                    continue
                read = getattr(bench, Path(program).stem).parse(words)
                assert not step.figures or read.device == ("cpu" if rehearsed else "cuda")
    for names in bench.steps.RUNS.values():
        assert set(names) <= {step.name for step in bench.steps.STEPS}


@pytest.mark.parametrize(("run", "seconds"), [("first", 330), ("second", 400), ("third", 490)])
def test_a_run_has_time_for_all_its_steps(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], run: str, seconds: int
) -> None:
    assert bench.gpu_session.main([run, "--plan", str(seconds)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for step in bench.steps.STEPS:
        if step.name in bench.steps.RUNS[run]:
            assert f"+ {step.limit} s {step.name}: {step.finds}" in shown
    assert bench.gpu_session.main([run, "--plan", "60"]) == 0
    assert "no time is left" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a card")
def test_without_a_card_one_line_says_so(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.gpu_session.main(["--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("gpu_session: no CUDA card found")
    assert not (tmp_path / "none").exists()


def test_a_step_past_its_limit_is_interrupted_and_the_next_one_runs(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Step = bench.steps.Step
    steps = [
        Step("long", "waits", ("-c", WAITS), 3, figures=False),
        Step("broken", "fails", ("-c", "raise SystemExit(3)"), 60, figures=False),
        Step("short", "prints", ("-c", "print(1)"), 60, figures=False),
    ]
    assert bench.gpu_session.run(steps, session(bench, tmp_path), 120.0) == ["long", "broken"]
    shown = capsys.readouterr().out
    assert "== long: STOPPED at its limit" in shown
    assert "== broken: FAILED (3)" in shown
    assert (tmp_path / "long.log").read_text().split() == ["begun", "interrupted"]
    assert bench.gpu_session.run(steps[1:], session(bench, tmp_path), 10.0) == ["broken", "short"]
    assert "== broken: no time is left for it\n== short: no time is left for it\n" in capsys.readouterr().out


def test_the_archive_holds_what_is_known_at_any_time(bench: SimpleNamespace, tmp_path: Path) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    with bench.gpu_session.archived(folder, out, every=0.05):
        (folder / "deep/journal.jsonl").write_text("{}\n", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(b"weights")
        end = time.monotonic() + 20
        while not (out / "session.tar.gz").exists() or "deep/journal.jsonl" not in read_archive(out / "session.tar.gz"):
            assert time.monotonic() < end
            time.sleep(0.05)
        (folder / "last.log").write_text("last", encoding="utf-8")
    found = read_archive(out / "session.tar.gz")
    assert {"deep/journal.jsonl", "last.log"} <= set(found)
    assert "model.safetensors" not in found
    assert [file.name for file in out.iterdir()] == ["session.tar.gz"]


def make_carried(folder: Path, key: str) -> None:
    (folder / "cache/ABC").mkdir(parents=True)
    (folder / "cache/ABC/kernel.cubin").write_bytes(b"code")
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels/thing-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "WORD = 'carried'")
    (folder / "manifest.json").write_text(json.dumps({"triton_key": key, "kernels": 1}), encoding="utf-8")


def test_what_was_carried_is_unpacked_where_it_was_made(bench: SimpleNamespace, tmp_path: Path) -> None:
    cache, site, folder = tmp_path / "cache", tmp_path / "site", tmp_path / "carried"
    assert bench.carried.unpack(folder, cache, site) == {}
    make_carried(folder, bench.carried.kernel_key())
    cache.mkdir()
    (cache / "old").touch()
    made = bench.gpu_session.environment(bench.carried.unpack(folder, cache, site), rehearsed=False)
    assert made["TRITON_CACHE_DIR"] == str(cache)
    assert [str(file.relative_to(cache)) for file in cache.rglob("*.*")] == ["ABC/kernel.cubin"]
    asked = [sys.executable, "-c", "import thing; print(thing.WORD)"]
    assert subprocess.run(asked, env=made, capture_output=True, text=True, check=True).stdout == "carried\n"
    lines, fits = bench.carried.describe(folder)
    assert fits
    assert lines[-1].endswith("fits")


def test_a_cache_of_another_compiler_is_told(bench: SimpleNamespace, tmp_path: Path) -> None:
    make_carried(tmp_path / "carried", "0" * 64)
    lines, fits = bench.carried.describe(tmp_path / "carried")
    assert not fits
    assert "does NOT fit" in lines[-1]


def test_kernels_are_carried_from_the_cards_own_releases_only(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.carry.main([str(tmp_path / "carried")], {"python": "3.12", "triton": "1.0"}) == 2
    error = capsys.readouterr().err
    assert error.startswith("carry: runs in python 3.12, triton 1.0, as on the card's machine, not in")
    assert error.count("\n") == 1
    assert not (tmp_path / "carried").exists()


def test_kernels_run_on_the_card_that_holds_their_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    class EnteredError(Exception):
        pass

    @contextmanager
    def enter(tensor: torch.Tensor) -> Iterator[None]:
        raise EnteredError(tensor)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", enter)
    query = torch.ones(1)
    for name in ("forward", "backward", "step"):
        with pytest.raises(EnteredError) as caught:  # before anything is launched, which these operands would break
            getattr(mesa_kernels, name)(query, tolerance=1.0)
        assert caught.value.args[0] is query


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="rehearses what a card would do")
def test_the_first_run_is_rehearsed_to_its_archive(bench: SimpleNamespace, tmp_path: Path) -> None:
    """With a step that fails and one that is cut after its first figures; the others are the card's, but small."""
    Step = bench.steps.Step
    endless = ("kernels/bench/bench_operator.py", "--quick", "--variants", "linear", "--repeats", "100000000")
    more = (Step("broken", "fails", ("-c", "raise SystemExit(3)"), 60, figures=False), Step("cut", "", endless, 40))
    steps = (*more, *(replace(step, limit=200) for step in bench.steps.STEPS))  # the interpreter's
    words = [
        "--only",
        "broken",
        "cut",
        *bench.steps.RUNS["first"],
        "--rehearse",
        "--out",
        str(tmp_path),
        "--carried",
        str(tmp_path / "none"),
        "--seconds",
        "900",
    ]
    assert bench.gpu_session.main(words, steps) == 1
    found = read_archive(tmp_path / "session.tar.gz")
    figures = {name: [json.loads(line) for line in found[name].splitlines()] for name in found if "jsonl" in name}
    assert set(figures) == {f"{name}.jsonl" for name in ("cut", "smoke", "profile", "aim")}
    assert [line["forward_s"]["repeats"] for line in figures["cut.jsonl"]] == [1]
    for name in ("smoke", "aim"):
        line = [line for line in figures[f"{name}.jsonl"] if line["variant"].startswith("triton")][-1]
        assert line["backend"] == "triton"
        assert line["errors"]["output"] < 1e-3
    assert {line["pass"] for line in figures["profile.jsonl"]} == {"forward", "both"}
    assert "passed" in found["check.log"]
    assert "torch" in found["versions.log"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="rehearses what a card would do")
def test_a_run_that_is_ended_leaves_its_archive(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "kernels/bench/gpu_session.py"), "--rehearse", "--only", "versions", "aim"]
    with subprocess.Popen([*words, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "== aim" not in (line := process.stdout.readline()):
            assert line
        assert process.stdout.readline()  # the step's own first line: its log is open
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert {"versions.log", "aim.log"} <= set(read_archive(tmp_path / "session.tar.gz"))

"""Do everything that waits for a GPU, one step after another, and write down what came out.

    python kernels/bench/gpu_session.py --out gpu-results            # make gpu
    python kernels/bench/gpu_session.py --minutes 25                 # on a machine that must be given back
    python kernels/bench/gpu_session.py --out gpu-results --only check train-step
    python kernels/bench/gpu_session.py --list

Runs in the interpreter that holds torch for the card; nothing is installed. Each step is a command of its own whose
output goes to OUT/STEP.log and whose figures go to OUT/STEP.jsonl as they come. A step that fails is reported and the
next one runs; a step that is done is not run again (--again runs it). With --minutes a step is stopped at its own
limit, and at the end of that time, keeping what it wrote; what matters most comes first. In the end `targets.py`
holds the figures against what was aimed at.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peer_kernel import PACKAGE, peer_release
from targets import show_targets

ROOT = Path(__file__).resolve().parents[2]
BENCH = "kernels/bench"
RECORDED = ("tests/data/recorded_short.safetensors", "tests/data/recorded_long.safetensors")
CHECKED = ("kernels_operator", "one_step", "large_heads", "kernels_library")
PYTEST = (
    *("-m", "pytest", "-p", "no:cacheprovider", "-q", "-ra", "-m", "not slow"),
    # a card's machine has other versions of libraries, whose warnings are not ours, and maybe none of pytest's plugins
    *("-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"),
)
AIM = ("--device", "cuda", "--dtype", "bfloat16", "--batch", "8", "--heads", "16")
AIMED = ("--length", "4096", "--size", "128", "--gamma", "0.99")
GRACE = 20.0
"""Seconds that a step which is interrupted has to end by itself."""


@dataclass(frozen=True)
class Step:
    """Name one thing to do: what it finds out, and the words of its command after the interpreter.

    limit: seconds after which it is stopped where time is short. figures: whether the program takes --out for JSON
    lines.
    """

    name: str
    finds: str
    words: tuple[str, ...]
    limit: int
    figures: bool = True


def operator(name: str, finds: str, limit: int, *words: str) -> Step:
    """Describe a run of `bench_operator.py` on a card; errors are those of one sequence, the exact one being slow."""
    return Step(name, finds, (f"{BENCH}/bench_operator.py", "--truth-rows", "1", *words), limit)


STEPS = (
    operator(
        "aim",
        "the size that the targets name: time, memory and error beside the peer, gated linear and softmax attention",
        180,
        *(*AIM, *AIMED, "--repeats", "20", "--memory", "all"),
    ),
    operator(
        "tiny-upstream",
        "the same with an upstream gradient of 1e-6: are gradients lost?",
        120,
        *(*AIM, *AIMED, "--upstream", "1e-6", "--repeats", "3", "--variants", "mesa", "fla"),
    ),
    Step(
        "check",
        "operator, model and kernels on the card against float64 on the CPU",
        (*PYTEST, "tests/model/test_devices.py", *(f"tests/kernels/test_{name}.py" for name in CHECKED)),
        300,
        figures=False,
    ),
    Step(
        "tune",
        "tiles and warps of every kernel; the table is kernels/mesa_kernels/tuned/CARD.json",
        (f"{BENCH}/tune.py", "--size", "128", "64", "--dtype", "bfloat16", "float32", "--limit", "330"),
        360,
        figures=False,
    ),
    operator(
        "tuned",
        "the size that the targets name once more, with what was tuned",
        180,
        *(*AIM, *AIMED, "--repeats", "20", "--memory", "all"),
    ),
    operator(
        "lengths",
        "1,024 to 65,536 tokens: from where on faster than softmax attention?",
        240,
        *("--device", "cuda", "--dtype", "bfloat16", "--batch", "1", "--heads", "16", "--size", "128"),
        *("--gamma", "0.99", "--length", "1024", "2048", "4096", "8192", "16384", "32768", "65536"),
        *("--repeats", "10", "--memory", "all", "--variants", "mesa", "fla", "softmax"),
    ),
    Step(
        "decode",
        "single tokens by batch and context",
        (
            *(f"{BENCH}/bench_decode.py", "--device", "cuda", "--dtype", "bfloat16"),
            *("--width", "768", "--heads", "12", "--layers", "12"),
            *("--batch", "1", "8", "64", "--context", "1024", "16384"),
        ),
        180,
    ),
    Step(
        "train-step",
        "a training step of 12 layers, width 768",
        (
            *(f"{BENCH}/bench_step.py", "--device", "cuda", "--precision", "bfloat16"),
            *("--width", "768", "--heads", "12", "--layers", "12"),
        ),
        180,
    ),
    operator(
        "gates-128",
        "heads of 128 and constant gates from 1 to 0.5",
        240,
        *(*AIM, "--length", "4096", "--size", "128", "--repeats", "5", "--variants", "mesa", "fla", "linear"),
    ),
    operator(
        "gates",
        "heads of 64 and constant gates from 1 to 0.5",
        240,
        *(*AIM, "--length", "4096", "--size", "64", "--repeats", "5", "--variants", "mesa", "fla", "linear"),
    ),
    operator(
        "recorded",
        "gates and keys of trained models",
        120,
        *("--device", "cuda", "--dtype", "bfloat16", "--repeats", "20", "--recorded", *RECORDED),
    ),
    operator(
        "float32",
        "the true float32 mode",
        180,
        *("--device", "cuda", "--batch", "4", "--heads", "8", "--length", "4096", "--size", "128"),
        *("--gamma", "1", "0.99", "0.9", "--repeats", "10"),
    ),
)


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    text = (__doc__ or "").split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=text[0], epilog=text[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder to write to")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="steps to do (default: all)")
    parser.add_argument("--again", action="store_true", help="do steps that are done once more")
    parser.add_argument("--minutes", type=float, help="stop steps at their limits, and everything after this time")
    parser.add_argument("--list", action="store_true", help="list the steps and their commands, and do nothing")
    return parser.parse_args(words)


def command(step: Step, out: Path) -> list[str]:
    """Give the words of a step's command; the peer is named only where it can run."""
    figures = ["--out", str(out / f"{step.name}.jsonl")] if step.figures else []
    absent = {"fla"} if peer_release() is None else set()
    return [sys.executable, *(word for word in step.words if word not in absent), *figures]


def interrupt(process: subprocess.Popen[str]) -> None:
    """Interrupt a step and all that it started, as Ctrl-C would, and end it where that does not help."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def do(step: Step, out: Path, limit: float | None = None) -> int:
    """Run a step from the root of the checkout; its output goes to the terminal and to OUT/STEP.log.

    It is interrupted after `limit` seconds. Returns its exit code, 124 where it was interrupted.
    """
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "eval"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    (out / f"{step.name}.jsonl").unlink(missing_ok=True)
    late = threading.Event()
    with (
        (out / f"{step.name}.log").open("w", encoding="utf-8", buffering=1) as log,
        subprocess.Popen(
            command(step, out.resolve()),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(limit or 0.0, lambda: (late.set(), interrupt(process)))
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)
            code = process.wait()
        except KeyboardInterrupt:
            interrupt(process)
            raise
        finally:
            timer.cancel()
    return 124 if late.is_set() else code


def run(steps: list[Step], out: Path, again: bool, minutes: float | None) -> list[str]:
    """Run steps one after another and return the names of those that failed or for which no time was left."""
    end = None if minutes is None else time.monotonic() + 60.0 * minutes
    failed = []
    for step in steps:
        mark = out / f"{step.name}.done"
        if mark.exists() and not again:
            print(f"== {step.name}: done before")
            continue
        begun = time.monotonic()
        limit = None if end is None else min(float(step.limit), end - begun - GRACE)
        if limit is not None and limit <= 0:
            print(f"== {step.name}: no time is left for it")
            failed.append(step.name)
            continue
        print(f"== {step.name}: {step.finds}", flush=True)
        code = do(step, out, limit)
        words = {0: "done", 124: "STOPPED at its limit"}.get(code, f"FAILED ({code})")
        print(f"== {step.name}: {words} after {time.monotonic() - begun:.0f} s", flush=True)
        if code == 0:
            mark.touch()
        else:
            failed.append(step.name)
    return failed


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0 if all steps did, 1 if one failed, 2 where there is no card."""
    arguments = parse(words)
    steps = [step for step in STEPS if arguments.only is None or step.name in arguments.only]
    if arguments.list:
        for step in steps:
            print(f"{step.name}: {step.finds}\n    {shlex.join(['python', *command(step, arguments.out)[1:]])}")
        return 0
    if not torch.cuda.is_available():
        print("gpu_session: there is no CUDA card here; --list shows what waits for one", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "card.txt").write_text(torch.cuda.get_device_name() + "\n", encoding="utf-8")
    if peer_release() is None:
        print(f"gpu_session: {PACKAGE} is not installed here: nothing is compared with the peer", file=sys.stderr)
    failed = run(steps, arguments.out, arguments.again, arguments.minutes)
    if failed:
        print(f"gpu_session: not done: {', '.join(failed)}; their output is in {arguments.out}", file=sys.stderr)
    show_targets(arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Do what waits for a GPU, one step after another, and keep what came out in one archive.

    python kernels/bench/gpu_session.py first --plan 330             # what would run, and how long; no card is needed
    python kernels/bench/gpu_session.py first --seconds 330          # on a machine that must be given back
    python kernels/bench/gpu_session.py all --out gpu-results        # make gpu
    python kernels/bench/gpu_session.py --only check train-step

Runs in the interpreter that holds torch for the card; nothing is installed. What `carry.py` made is unpacked first.
Each step is a command of its own; one that fails or is stopped does not stop the others. With --seconds a step is
stopped at its own limit, and at the end of that time. OUT/session.tar.gz holds the figures (STEP.jsonl), the output
(STEP.log) and what else was written; it is written anew every few seconds, so that an end at any time leaves what was
known.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import records
import torch
from carried import unpack
from peer_kernel import PACKAGE, peer_release
from records import ROOT
from steps import RUNS, STEPS, Step

ARCHIVE = "session.tar.gz"
ARCHIVED = (".jsonl", ".json", ".log", ".txt", ".yaml")
"""Files that the archive holds; not the weights of models."""
LARGEST = 4 * 2**20
"""Bytes of the largest file in the archive."""
EVERY = 5.0
"""Seconds after which the archive is written anew."""
GRACE = 10.0
"""Seconds that a step which is interrupted has to end by itself."""
LEAST = 5.0
"""Seconds of the shortest step that is begun."""


@dataclass(frozen=True)
class Session:
    """Where steps write, what was carried here, whether the run is a rehearsal, and the environment of steps."""

    folder: Path
    carried: Path
    rehearsed: bool
    environment: dict[str, str]


def parse(words: list[str] | None, steps: tuple[Step, ...] = STEPS) -> argparse.Namespace:
    """Read the command line."""
    parser = records.make_parser(__doc__)
    parser.add_argument("run", nargs="?", choices=RUNS, default="first", help="steps to do (default: first)")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in steps], help="these steps instead")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the archive")
    parser.add_argument("--carried", type=Path, default=ROOT / ".card", help="what carry.py made (default: .card)")
    parser.add_argument("--seconds", type=float, help="stop steps at their limits, and everything after this time")
    parser.add_argument("--plan", type=float, metavar="SECONDS", help="list what would run in that time; do nothing")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, in tiny sizes, in Triton's interpreter")
    return parser.parse_args(words)


def allow(step: Step, left: float | None) -> float | None:
    """Return the seconds that a step may take of those that are left; nothing is set aside where there is no end.

    0 where it is not begun.
    """
    if left is None:
        return None
    limit = min(float(step.limit), left - GRACE)
    return limit if limit >= min(LEAST, step.limit) else 0.0


def show_plan(steps: list[Step], arguments: argparse.Namespace) -> None:
    """Print each step's start, seconds and command, every step taking as long as it may."""
    begun = 0.0
    for step in steps:
        seconds = allow(step, arguments.plan - begun) or 0.0
        when = f"{begun:4.0f} s + {seconds:3.0f} s" if seconds else "no time is left"
        words = step.command(arguments.out, arguments.carried, arguments.rehearse)[1:]
        print(f"{when:15}  {step.name}: {step.finds}\n{'':17}{shlex.join(['python', *words])}")
        begun += seconds
    print(f"{begun:4.0f} s of {arguments.plan:.0f}, {GRACE:.0f} of them for the end")


def interrupt(process: subprocess.Popen[str]) -> None:
    """Interrupt a step and all that it started, as Ctrl-C would, and end it where that does not help."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE / 2)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def do(step: Step, session: Session, limit: float | None = None) -> int:
    """Run a step from the root of the checkout; its output goes to the terminal and to STEP.log.

    It is interrupted after `limit` seconds. Returns its exit code, 124 where it was interrupted.
    """
    late = threading.Event()
    with (
        (session.folder / f"{step.name}.log").open("w", encoding="utf-8", buffering=1) as log,
        subprocess.Popen(
            step.command(session.folder, session.carried, session.rehearsed),
            cwd=ROOT,
            env=session.environment,
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


def run(steps: list[Step], session: Session, seconds: float | None = None) -> list[str]:
    """Run steps one after another and return the names of those that failed or for which no time was left."""
    end = None if seconds is None else time.monotonic() + seconds
    failed = []
    for step in steps:
        begun = time.monotonic()
        limit = allow(step, None if end is None else end - begun)
        if limit == 0.0:
            print(f"== {step.name}: no time is left for it")
            failed.append(step.name)
            continue
        print(f"== {step.name}: {step.finds}", flush=True)
        code = do(step, session, limit)
        words = {0: "done", 124: "STOPPED at its limit"}.get(code, f"FAILED ({code})")
        print(f"== {step.name}: {words} after {time.monotonic() - begun:.0f} s", flush=True)
        if code:
            failed.append(step.name)
    return failed


def write_archive(folder: Path, out: Path) -> None:
    """Write OUT/session.tar.gz of what lies in a folder and of the tables that were tuned."""
    tuned = (ROOT / "kernels/mesa_kernels/tuned").glob("*.json")
    files = [(file, Path("tuned") / file.name) for file in tuned]
    files += [(file, file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in ARCHIVED]
    fresh = out / f".{ARCHIVE}"
    with tarfile.open(fresh, "w:gz") as archive:
        for file, name in files:
            with contextlib.suppress(FileNotFoundError):  # a step may take away what it wrote
                if file.stat().st_size <= LARGEST:
                    archive.add(file, str(name))
    fresh.replace(out / ARCHIVE)


@contextlib.contextmanager
def archived(folder: Path, out: Path, every: float = EVERY) -> Iterator[None]:
    """Keep OUT/session.tar.gz up to date while everything inside runs, and write it at the end."""
    out.mkdir(parents=True, exist_ok=True)
    over = threading.Event()

    def keep_writing() -> None:
        while not over.wait(every):
            write_archive(folder, out)

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()
        write_archive(folder, out)


def environment(unpacked: dict[str, str], rehearsed: bool) -> dict[str, str]:
    """Return the environment in which steps find this checkout and what `unpack` put in its place."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "eval"), unpacked.get("PYTHONPATH", "")]
    paths = [path for path in (*paths, os.environ.get("PYTHONPATH", "")) if path]
    interpreted = {"TRITON_INTERPRET": "1"} if rehearsed else {}
    return {**os.environ, **unpacked, **interpreted, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main(words: list[str] | None = None, known: tuple[Step, ...] = STEPS) -> int:
    """Run the program on steps that are known; return 0 if all did, 1 if one failed, 2 where there is no card."""
    begun = time.monotonic()
    arguments = parse(words, known)
    chosen = arguments.only or RUNS[arguments.run]
    steps = [step for step in known if step.name in chosen]
    if arguments.plan is not None:
        show_plan(steps, arguments)
        return 0
    if not arguments.rehearse and not torch.cuda.is_available():
        print("gpu_session: no CUDA card found; --plan 330 shows what would run on one", file=sys.stderr)
        return 2
    out: Path = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name, archived(Path(name), out):
        folder = Path(name)
        variables = environment(unpack(arguments.carried), arguments.rehearse)
        sys.path += variables["PYTHONPATH"].split(os.pathsep)
        if peer_release() is None:
            print(f"gpu_session: {PACKAGE} is not installed: nothing is compared with the peer", file=sys.stderr)
        session = Session(folder, arguments.carried.resolve(), arguments.rehearse, variables)
        left = None if arguments.seconds is None else arguments.seconds - (time.monotonic() - begun)
        failed = run(steps, session, left)
    if failed:
        print(f"gpu_session: not done: {', '.join(failed)}; their output is in {out / ARCHIVE}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that being ended leaves an archive too
    sys.exit(main())

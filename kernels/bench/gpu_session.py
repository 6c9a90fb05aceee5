"""Do everything that waits for a GPU, one step after another, and write down what came out.

    python kernels/bench/gpu_session.py --out gpu-results            # make gpu
    python kernels/bench/gpu_session.py --out gpu-results --only check train-step
    python kernels/bench/gpu_session.py --list

Runs in the interpreter that holds torch for the card; nothing is installed. Each step is a command of its own whose
output goes to OUT/STEP.log and whose figures go to OUT/STEP.jsonl. A step that fails is reported and the next one runs;
a step that is done is not run again (--again runs it). In the end `targets.py` holds the figures against what was aimed
at.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from targets import show_targets

ROOT = Path(__file__).resolve().parents[2]
BENCH = "kernels/bench"
RECORDED = ("tests/data/recorded_short.safetensors", "tests/data/recorded_long.safetensors")
AIM = ("--device", "cuda", "--dtype", "bfloat16", "--batch", "8", "--heads", "16")


@dataclass(frozen=True)
class Step:
    """Name one thing to do: what it finds out, and the words of its command after the interpreter.

    figures: whether the program takes --out for JSON lines.
    """

    name: str
    finds: str
    words: tuple[str, ...]
    figures: bool = True


def operator(name: str, finds: str, *words: str) -> Step:
    """Describe a run of `bench_operator.py` on a card."""
    return Step(name, finds, (f"{BENCH}/bench_operator.py", *words))


STEPS = (
    Step(
        "check",
        "operator, model and kernels on the card against float64 on the CPU",
        ("-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/kernels", "tests/model/test_devices.py"),
        figures=False,
    ),
    Step(
        "tune",
        "tiles and warps of every kernel; the table is kernels/mesa_kernels/tuned/CARD.json",
        (f"{BENCH}/tune.py", "--size", "64", "128", "--dtype", "bfloat16", "float32"),
        figures=False,
    ),
    operator(
        "aim",
        "the size that the targets name: time, memory and error beside the peer, gated linear and softmax attention",
        *(*AIM, "--length", "4096", "--size", "128", "--gamma", "0.99", "--repeats", "20", "--memory", "all"),
    ),
    operator(
        "tiny-upstream",
        "the same with an upstream gradient of 1e-6: are gradients lost?",
        *(*AIM, "--length", "4096", "--size", "128", "--gamma", "0.99", "--upstream", "1e-6", "--repeats", "3"),
        *("--variants", "mesa", "fla"),
    ),
    operator(
        "gates",
        "heads of 64 and constant gates from 1 to 0.5",
        *(*AIM, "--length", "4096", "--size", "64", "--repeats", "10"),
    ),
    operator(
        "gates-128",
        "heads of 128 and constant gates from 1 to 0.5",
        *(*AIM, "--length", "4096", "--size", "128", "--repeats", "10"),
    ),
    operator(
        "recorded",
        "gates and keys of trained models",
        *("--device", "cuda", "--dtype", "bfloat16", "--repeats", "20", "--recorded", *RECORDED),
    ),
    operator(
        "lengths",
        "1,024 to 65,536 tokens: from where on faster than softmax attention?",
        *("--device", "cuda", "--dtype", "bfloat16", "--batch", "1", "--heads", "16", "--size", "128"),
        *("--gamma", "0.99", "--length", "1024", "2048", "4096", "8192", "16384", "32768", "65536"),
        *("--repeats", "10", "--memory", "all"),
    ),
    operator(
        "float32",
        "the true float32 mode",
        *("--device", "cuda", "--batch", "4", "--heads", "8", "--length", "4096", "--size", "128"),
        *("--gamma", "1", "0.99", "0.9", "--repeats", "10"),
    ),
    Step(
        "train-step",
        "a training step of 12 layers, width 768",
        (
            *(f"{BENCH}/bench_step.py", "--device", "cuda", "--precision", "bfloat16"),
            *("--width", "768", "--heads", "12", "--layers", "12"),
        ),
    ),
    Step(
        "decode",
        "single tokens by batch and context",
        (
            *(f"{BENCH}/bench_decode.py", "--device", "cuda", "--dtype", "bfloat16"),
            *("--width", "768", "--heads", "12", "--layers", "12"),
            *("--batch", "1", "8", "64", "--context", "1024", "16384"),
        ),
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
    parser.add_argument("--list", action="store_true", help="list the steps and their commands, and do nothing")
    return parser.parse_args(words)


def command(step: Step, out: Path) -> list[str]:
    """Give the words of a step's command."""
    figures = ["--out", str(out / f"{step.name}.jsonl")] if step.figures else []
    return [sys.executable, *step.words, *figures]


def do(step: Step, out: Path) -> int:
    """Run a step from the root of the checkout; its output goes to the terminal and to OUT/STEP.log."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "eval"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    figures = out / f"{step.name}.jsonl"
    figures.unlink(missing_ok=True)
    with (out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command(step, out.resolve()),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
    return process.wait()


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0 if all steps did, 1 if one failed, 2 where there is no card."""
    arguments = parse(words)
    steps = [step for step in STEPS if arguments.only is None or step.name in arguments.only]
    if arguments.list:
        for step in steps:
            print(f"{step.name}: {step.finds}\n    {' '.join(['python', *command(step, arguments.out)[1:]])}")
        return 0
    if not torch.cuda.is_available():
        print("gpu_session: there is no CUDA card here; --list shows what waits for one", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "card.txt").write_text(torch.cuda.get_device_name() + "\n", encoding="utf-8")
    failed = []
    for step in steps:
        mark = arguments.out / f"{step.name}.done"
        if mark.exists() and not arguments.again:
            print(f"== {step.name}: done before")
            continue
        print(f"== {step.name}: {step.finds}", flush=True)
        begun = time.monotonic()
        code = do(step, arguments.out)
        print(f"== {step.name}: {'done' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - begun:.0f} s")
        if code == 0:
            mark.touch()
        else:
            failed.append(step.name)
    if failed:
        print(f"gpu_session: failed: {', '.join(failed)}; their output is in {arguments.out}", file=sys.stderr)
    show_targets(arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Name what is measured on a card: every step's command, its seconds, and the runs that steps make up."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from peer_kernel import peer_release

BENCH = "kernels/bench"
RECORDED = ("tests/data/recorded_short.safetensors", "tests/data/recorded_long.safetensors")
CHECKED = ("kernels_operator", "one_step", "large_heads", "kernels_library")
TESTS = (
    *("-m", "pytest", "-p", "no:cacheprovider", "-q", "-ra"),
    # a card's machine has other versions of libraries, whose warnings are not ours, and maybe none of pytest's plugins
    *("-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"),
)
PYTEST = (*TESTS, "tests/model/test_devices.py", *(f"tests/kernels/test_{name}.py" for name in CHECKED))
AIM = ("--dtype", "bfloat16", "--batch", "8", "--heads", "16")
STEP = ("--precision", "bfloat16", "--width", "768", "--heads", "12", "--layers", "12", "--tokens", "32768")
AIMED = ("--length", "4096", "--size", "128", "--gamma", "0.99")


@dataclass(frozen=True)
class Step:
    """One thing to do: what it finds out, and the words of its command after the interpreter.

    limit: seconds after which it is interrupted where time is short. card, rehearsal: words that are added on a card,
    and on a CPU, where it only shows whether it runs. figures: whether the program takes --out for JSON lines.
    {carried} in a word is what was carried here.
    """

    name: str
    finds: str
    words: tuple[str, ...]
    limit: int
    card: tuple[str, ...] = ()
    rehearsal: tuple[str, ...] = ()
    figures: bool = True

    def command(self, folder: Path, carried: Path, rehearsed: bool) -> list[str]:
        """Return the words of the command; the peer is named only where it can run."""
        absent = {"fla"} if peer_release() is None else set()
        words = [*self.words, *(self.rehearsal if rehearsed else self.card)]
        figures = ["--out", str(folder / f"{self.name}.jsonl")] if self.figures else []
        found = (word.replace("{carried}", str(carried)) for word in words)
        return [sys.executable, *(word for word in found if word not in absent), *figures]


def bench(name: str, finds: str, program: str, limit: int, *card: str, rehearsal: tuple[str, ...] = ()) -> Step:
    """Describe a run of one of the programs that measure."""
    quick = ("--device", "cpu", "--quick", *rehearsal)
    return Step(name, finds, (f"{BENCH}/{program}.py",), limit, ("--device", "cuda", *card), quick)


def operator(name: str, finds: str, limit: int, *card: str) -> Step:
    """Describe a run of `bench_operator.py`; errors are those of one sequence, the exact one being slow."""
    quick = ("--variants", "triton", "linear", "--heads", "1", "--length", "66", "--repeats", "1", "--warmup", "0")
    return bench(name, finds, "bench_operator", limit, "--truth-rows", "1", *card, rehearsal=quick)


STEPS = (
    Step(
        "versions",
        "versions on this machine, and whether the carried kernels fit them",
        (f"{BENCH}/carried.py", "{carried}"),
        15,
        figures=False,
    ),
    operator(
        "smoke",
        "short sequences in float32 and bfloat16: do the kernels run, and how large are errors?",
        30,
        *("--dtype", "float32", "bfloat16", "--heads", "16", "--length", "512", "--size", "128"),
        *("--gamma", "0.99", "1", "--repeats", "3", "--memory", "none", "--variants", "mesa"),
    ),
    bench(
        "profile",
        "the target size: time by kernel, three gates",
        "profile_pass",
        45,
        *("--gamma", "0.99", "0.9", "0.999"),
        rehearsal=("--variant", "triton", "--heads", "1", "--length", "66", "--gamma", "0.9", "--repeats", "1"),
    ),
    operator(
        "aim",
        "the target size: time, memory and error beside the peer, gated linear and softmax attention",
        120,
        *(*AIM, *AIMED, "--repeats", "20", "--memory", "all", "--variants", "mesa", "fla", "linear", "softmax"),
    ),
    Step(
        "check",
        "chosen tests of operator, model and kernels on the card against float64 on the CPU",
        PYTEST,
        90,
        ("-m", "card", "-n", "12"),
        ("-m", "card", "-k", "report_names"),
        figures=False,
    ),
    operator(
        "tiny-upstream",
        "the same as aim with an upstream gradient of 1e-6: are gradients lost?",
        120,
        *(*AIM, *AIMED, "--upstream", "1e-6", "--repeats", "3", "--variants", "mesa", "fla"),
    ),
    operator(
        "lengths",
        "1,024 to 65,536 tokens: from which length on faster than softmax attention?",
        130,
        *("--dtype", "bfloat16", "--batch", "1", "--heads", "16", "--size", "128"),
        *("--gamma", "0.99", "--length", "1024", "2048", "4096", "8192", "16384", "32768", "65536"),
        *("--repeats", "10", "--memory", "all", "--variants", "mesa", "fla", "softmax"),
    ),
    Step(
        "waits",
        "does a training step wait for the card?",
        (*TESTS, "tests/train/test_reads.py"),
        45,
        ("-m", "card"),
        ("-m", "card"),
        figures=False,
    ),
    bench("train-step", "a training step of 12 layers, width 768", "bench_step", 60, *STEP),
    bench("train-step-compiled", "the same through torch.compile", "bench_step", 120, *STEP, "--compile"),
    Step(
        "tune",
        "tiles and warps of every kernel; the table is kernels/mesa_kernels/tuned/CARD.json",
        (f"{BENCH}/tune.py",),
        120,
        ("--size", "128", "64", "--dtype", "bfloat16", "float32", "--limit", "110"),
        ("--help",),
        figures=False,
    ),
    operator(
        "tuned",
        "the target size again, with the tuned tiles",
        120,
        *(*AIM, *AIMED, "--repeats", "20", "--memory", "all"),
    ),
    bench(
        "decode",
        "single tokens by batch and context",
        "bench_decode",
        120,
        *("--dtype", "bfloat16", "--width", "768", "--heads", "12", "--layers", "12"),
        *("--batch", "1", "8", "64", "--context", "1024", "16384"),
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
        *("--dtype", "bfloat16", "--repeats", "20", "--recorded", *RECORDED),
    ),
    operator(
        "float32",
        "the true float32 mode",
        180,
        *("--batch", "4", "--heads", "8", "--length", "4096", "--size", "128"),
        *("--gamma", "1", "0.99", "0.9", "--repeats", "10"),
    ),
    Step(
        "check-all",
        "all tests of the kernels, and of operator and model on the card",
        PYTEST,
        600,
        ("-m", "not slow"),
        ("-m", "card", "-k", "report_names"),
        figures=False,
    ),
)
RUNS = {
    "first": ("versions", "smoke", "profile", "aim", "check"),
    "second": ("versions", "profile", "lengths", "train-step", "tune"),
    "third": ("versions", "waits", "train-step", "train-step-compiled", "decode", "tune"),
    "all": tuple(step.name for step in STEPS),
}
"""Runs of a card that is lent for minutes, and all that waits for one."""

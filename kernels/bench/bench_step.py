"""Time whole training steps of a small model: mesa beside gated linear attention and its softmax baseline.

    python kernels/bench/bench_step.py                       # T = 512 and 4,096, 8,192 tokens per step, 2 tolerances
    python kernels/bench/bench_step.py --device cuda --precision bfloat16 --width 768 --heads 12 --layers 12

A step is the forward pass, the loss, the backward pass and AdamW. All models differ in their mixers alone, and see the
same random tokens. With --recorded each head starts from its mean gates in a trained model. Prints one table per
length, and appends one JSON line per model and length to --out. With --profile, another table per model shows where the
time of a step goes. See README.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import records
import torch
from cases import BASELINE, DTYPES, MODEL_SIZES, add_model_arguments, build_model
from measure import Spread, interleave, large_product, ratio
from profile_pass import profile_action
from torch.utils._python_dispatch import TorchDispatchMode

from mesalm import MesaForCausalLM
from mesalm.lab.inspection.recorded import load_recorded
from mesalm.model.mixers import MIXERS
from mesalm.train.step import compiled


class Operators(TorchDispatchMode):
    """Count torch's operators that write memory, each of them a kernel to launch; ours count as one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func.name() or "detach" in func.name())
        return func(*args, **(kwargs or {}))


@dataclass
class Trainee:
    """A model, what runs it (itself, or its compiled form), its optimiser and the tokens `[rows, T]` of its steps.

    positions `[rows, T]`: begin again in each document; None where a row is one.
    """

    name: str
    model: MesaForCausalLM
    run: Callable[..., Any]
    optimiser: torch.optim.Optimizer
    tokens: torch.Tensor
    positions: torch.Tensor | None
    precision: torch.dtype
    loss: float = float("nan")

    def step(self) -> None:
        """Make one optimiser step and keep its loss."""
        device = self.tokens.device.type
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            loss = self.run(input_ids=self.tokens, labels=self.tokens, position_ids=self.positions).loss
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.loss = loss.detach()

    def operators(self) -> int | None:
        """Count the operators of one step; None for a compiled model, which is none of operators."""
        if self.run is not self.model:
            return None
        with Operators() as operators:
            self.step()
        return operators.count

    def flops(self) -> float:
        """Count the operations of one step; the solver's steps are those of the last forward pass."""
        return self.model.flops_per_token(self.tokens.shape[1], self.model.solver_steps() or 0.0) * self.tokens.numel()


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line; --quick is small sizes and few repeats, unless they are given too."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--length", type=int, nargs="+", help="tokens per row (default: 512 4096)")
    parser.add_argument("--tokens", type=int, help="tokens per step (default: 8192)")
    add_model_arguments(parser)
    parser.add_argument("--tolerance", type=float, nargs="+", default=[1e-3, 1e-4], help="of mesa mixers")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--compile", nargs="?", const=True, choices=("blocks",), help="whole models, or their blocks")
    parser.add_argument("--conv-size", type=int, help="of all mixers (default: each mixer's own)")
    parser.add_argument("--documents", type=int, default=1, help="in each row, of one length (default: 1)")
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="start from the mean gates of a recorded model")
    parser.add_argument("--process-time", action="store_true", help="measure processor time")
    parser.add_argument("--profile", type=int, metavar="N", help="show the N operations with most time of their own")
    parser.add_argument("--repeats", type=int, help="steps measured (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    usual = {**MODEL_SIZES, "length": ([512, 4096], [96]), "tokens": (8192, 192), "repeats": (10, 2)}
    arguments = records.read_arguments(parser, words, usual)
    for length in arguments.length:
        if length < 2 or arguments.tokens % length:
            parser.error(f"--length {length} must be at least 2 and divide --tokens {arguments.tokens}")
        if arguments.documents < 1 or length % arguments.documents:
            parser.error(f"--documents {arguments.documents} must be at least 1 and divide --length {length}")
    if arguments.process_time and arguments.device != "cpu":
        parser.error("--process-time: a card's work takes no processor time; leave it out")
    return arguments


def build(arguments: argparse.Namespace, mixer: str, tolerance: float, length: int) -> Trainee:
    """Build a model with one mixer, its AdamW and its tokens."""
    model = build_model(arguments, mixer, length, tolerance=tolerance, conv_size=arguments.conv_size)
    if arguments.recorded is not None and MIXERS[mixer].attention is None:
        set_gates(model, arguments.recorded)
    model.to(arguments.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    tokens = torch.randint(arguments.vocabulary, (arguments.tokens // length, length), generator=generator)
    name = f"{mixer}@{tolerance:g}" if mixer == "mesa" else mixer
    positions = None
    if arguments.documents > 1:
        positions = (torch.arange(length) % (length // arguments.documents)).repeat(len(tokens), 1).to(arguments.device)
    run = compiled(model, arguments.compile or False)
    return Trainee(name, model, run, optimiser, tokens.to(arguments.device), positions, DTYPES[arguments.precision])


def set_gates(model: MesaForCausalLM, file: Path) -> None:
    """Have each head start from its mean gates in a recorded model: exp(mean log gamma) and mean beta.

    Raises ValueError where the recorded model has other layers or heads.
    """
    recorded = load_recorded(file)
    mixers = [block.mixer for block in model.model.layers]
    shapes = [len(mixers), {mixer.groups for mixer in mixers}], [len(recorded), {x["key"].shape[2] for x in recorded}]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{file}: layers and heads are {shapes[1]}, not {shapes[0]}; give its --layers and --heads")
    with torch.no_grad():
        for mixer, layer in zip(mixers, recorded, strict=True):
            forget = layer["log_forget"].clamp(min=-60.0).mean((0, 1)).exp()  # a restart would count for all
            mixer.forget_proj.bias.copy_(forget.logit())
            mixer.input_proj.bias.copy_(layer["input_gate"].mean((0, 1)).logit())


def measure_length(arguments: argparse.Namespace, length: int) -> tuple[list[Trainee], dict[str, Spread]]:
    """Time the steps of all models at one length, turn by turn."""
    trainees = [
        build(arguments, mixer, tolerance, length)
        for mixer in arguments.mixers
        for tolerance in (arguments.tolerance if mixer == "mesa" else arguments.tolerance[:1])
    ]
    steps: dict[str, Callable[[], object]] = {trainee.name: trainee.step for trainee in trainees}
    clock = time.process_time if arguments.process_time else time.perf_counter
    return trainees, interleave(steps, arguments.repeats, arguments.warmup, arguments.device, clock)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print and write all lengths; return the JSON lines."""
    shared = records.describe_run("bench_step", arguments)
    peak = large_product(DTYPES[arguments.precision], arguments.device, arguments.quick)
    written = []
    for length in arguments.length:
        trainees, times = measure_length(arguments, length)
        lines = []
        for trainee in trainees:
            spread, flops = times[trainee.name], trainee.flops()
            lines.append(
                {
                    **shared,
                    "peak_flops_per_s": peak,
                    "length": length,
                    "rows": trainee.tokens.shape[0],
                    "variant": trainee.name,
                    "step_s": asdict(spread),
                    "tokens_per_s": arguments.tokens / spread.median,
                    "time_over_softmax": ratio(spread, times.get(BASELINE)),
                    "solver_steps": trainee.model.solver_steps(),
                    "flops": flops,
                    "share_of_peak": flops / spread.median / peak,
                    "loss": float(trainee.loss),
                    "operators": trainee.operators(),
                }
            )
        show_length(length, lines)
        for trainee in trainees if arguments.profile else ():
            show_profile(trainee, arguments)
        if arguments.out is not None:
            records.append_lines(arguments.out, lines)
        written += lines
    return written


def show_length(length: int, lines: list[dict[str, Any]]) -> None:
    """Print the table of one length."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda line: line["variant"],
        "step\nms": lambda line: records.milliseconds(line["step_s"]),
        "tokens\na second": lambda line: records.number(line["tokens_per_s"]),
        "times\nsoftmax": lambda line: records.number(line["time_over_softmax"]),
        "solver\nsteps": lambda line: records.number(line["solver_steps"]),
        "GFLOP": lambda line: records.number(line["flops"], 1e-9),
        "of peak": lambda line: records.share(line["share_of_peak"]),
        "loss": lambda line: records.number(line["loss"]),
        "operators": lambda line: records.number(line["operators"]),
    }
    records.show_lines(f"training steps, {lines[0]['rows']} rows of {length} tokens", columns, lines)


def show_profile(trainee: Trainee, arguments: argparse.Namespace) -> None:
    """Print the operations of a step that take most time, without those that they call."""
    shares = profile_action(trainee.step, arguments.repeats, arguments.device)
    total = sum(x.microseconds for x in shares)
    cells = [
        (
            x.kernel[:60],
            f"{x.launches:.0f}",
            records.number(x.microseconds, 1e-3),
            records.share(x.microseconds / total),
        )
        for x in shares[: arguments.profile]
    ]
    records.show(f"{trainee.name}, {total / 1e3:.0f} ms per step", ("operation", "calls", "ms", "share"), cells)


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    return records.run_program("bench_step", run, parse(words))


if __name__ == "__main__":
    sys.exit(main())

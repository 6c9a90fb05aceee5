"""Show where the time of a pass goes on a card: every kernel's launches, microseconds and share.

    python kernels/bench/profile_pass.py --device cuda              # B = 8, T = 4096, H = 16, K = V = 128, bfloat16
    python kernels/bench/profile_pass.py --device cuda --variant fla --gamma 0.99

torch.profiler counts all that runs on the device, torch's own kernels too; on a CPU, where nothing runs on one, it
counts torch's operations. Appends one JSON line a gamma, pass and kernel to --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import records
import torch
from cases import DTYPES, Case, make_operands
from measure import interleave, wait_for
from peak_of_variant import passes
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from variants import ALL, find, spell


class Share(NamedTuple):
    """A kernel's launches and microseconds in one pass."""

    kernel: str
    launches: float
    microseconds: float


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line; --quick is small sizes, unless they are given too."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.99, 0.9, 0.999])
    parser.add_argument("--variant", choices=ALL, nargs="+", default=["mesa"])
    parser.add_argument("--batch", type=int, help="default 8")
    parser.add_argument("--length", type=int, help="tokens (default: 4096)")
    parser.add_argument("--heads", type=int, help="default 16")
    parser.add_argument("--size", type=int, help="size of keys and of values (default: 128)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5, help="passes that are profiled")
    usual = {"batch": (8, 1), "length": (4096, 130), "heads": (16, 2), "size": (128, 16)}
    return records.read_arguments(parser, words, usual)


def profile_action(action: Callable[[], object], repeats: int, device: str) -> list[Share]:
    """Profile repeats of an action and give what one of them runs on the device, the longest first."""
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            action()
        wait_for(device)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    shares = [
        Share(
            event.key,
            event.count / repeats,
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / repeats,
        )
        for event in profiled.key_averages()
        if event.device_type == kind
    ]
    return sorted((x for x in shares if x.microseconds > 0), key=lambda x: -x.microseconds)


def run(arguments: argparse.Namespace) -> None:
    """Profile, print and write every variant and gamma: the forward pass, then both passes."""
    shared = records.describe_run("profile_pass", arguments)
    sizes = {name: getattr(arguments, name) for name in ("length", "batch", "heads", "size", "dtype", "device", "seed")}
    for gamma in arguments.gamma:
        case = Case(gamma=gamma, **sizes)
        operands = make_operands(case)
        leaves, upstream = operands.leaves(), torch.randn_like(operands.value)
        for name in (name for word in arguments.variant for name in spell(word, [arguments.tolerance])):
            actions = passes(find(name), operands, leaves, upstream)
            times = interleave(actions, arguments.repeats, 1, case.device)
            for way, action in actions.items():
                shares = profile_action(action, arguments.repeats, case.device)
                total = sum(x.microseconds for x in shares)
                common: dict[str, Any] = {"case": asdict(case), "variant": name, "pass": way}
                common["pass_s"] = asdict(times[way])
                lines = [{**shared, **common, **x._asdict(), "share": x.microseconds / total} for x in shares]
                if arguments.out is not None:
                    records.append_lines(arguments.out, lines)
                cells = [
                    (x.kernel[:100], f"{x.launches:g}", f"{x.microseconds:.0f}", records.share(x.microseconds / total))
                    for x in shares
                ]
                notes = [f"kernels {total:.0f} µs of {1e6 * times[way].median:.0f} µs that a pass takes"]
                title = f"{name}, {case.name}, {way}"
                records.show(title, ("kernel", "launches", "µs", "share"), cells, notes)


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    return records.run_program("profile_pass", run, parse(words))


if __name__ == "__main__":
    sys.exit(main())

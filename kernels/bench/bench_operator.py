"""Time mesa attention beside its rivals in one run: time, memory and error of each.

    python kernels/bench/bench_operator.py                          # eight gates, 2,048 tokens, 8 heads of 64, float32
    python kernels/bench/bench_operator.py --gamma 0.99 --length 2048 8192 32768
    python kernels/bench/bench_operator.py --recorded tests/data/recorded_long.safetensors
    python kernels/bench/bench_operator.py --device cuda --dtype bfloat16 --batch 8 --heads 16 --size 128 --length 4096

Prints one table a case. Appends a JSON line to --out whenever more is known of a variant: the last line of a variant
and case holds everything. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import records
import torch
from accuracy import Errors, find_errors, find_truth
from cases import DTYPES, GAMMAS, KEYS, Case, make_operands, recorded_case
from measure import Spread, copy_rate, interleave, large_product, ratio
from peak_of_variant import measure, measure_apart, passes
from peer_kernel import peer_release
from variants import ALL, BASELINES, QUADRATIC, backend_of, find, mean_steps, spell

QUADRATIC_LIMIT = 8192
"""Longest case that variants of quadratic time are run on, on a CPU."""


@dataclass(frozen=True)
class VariantRow:
    """What was measured of one variant on one case."""

    name: str
    forward: Spread
    both: Spread
    memory: dict[str, int | None] | None = None
    steps: float | None = None
    errors: Errors | None = None
    backend: str | None = None


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line; --quick is small sizes and few repeats, unless they are given too."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--gamma", type=float, nargs="+", help="mean forgetting of synthetic cases (default: eight)")
    parser.add_argument("--keys", choices=KEYS, nargs="+", default=["corr"], help="key statistics of synthetic cases")
    parser.add_argument("--recorded", nargs="+", default=[], metavar="FILE", help="operands of trained models instead")
    parser.add_argument("--length", type=int, nargs="+", help="tokens (default: 2048; the whole of a recorded file)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, help="default 8")
    parser.add_argument("--size", type=int, help="size of keys and of values (default: 64)")
    parser.add_argument("--variants", choices=ALL, nargs="+", help="default: all that have a place on the device")
    parser.add_argument("--tolerance", type=float, nargs="+", default=[1e-4], help="of mesa, shared and cg")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), nargs="+", default=["float32"])
    parser.add_argument("--repeats", type=int, help="measurements of each variant (default: 15)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--memory", choices=("all", "first", "none"), help="cases whose peak memory is measured")
    parser.add_argument("--upstream", type=float, default=1.0, help="size of the upstream gradient of gradient errors")
    parser.add_argument("--truth-rows", type=int, metavar="N", help="find errors of the first N sequences only")
    usual = {
        "gamma": (list(GAMMAS), [0.99]),
        "heads": (8, 2),
        "size": (64, 16),
        "repeats": (15, 2),
        "memory": ("first", "none"),
    }
    arguments = records.read_arguments(parser, words, usual)
    arguments.variants = arguments.variants or usual_variants(arguments.device)
    if not arguments.recorded:
        arguments.length = arguments.length or ([192] if arguments.quick else [2048])
    if min(*(arguments.length or [1]), arguments.batch, arguments.heads, arguments.size, arguments.repeats) < 1:
        parser.error("--length, --batch, --heads, --size and --repeats must be at least 1")
    return arguments


def usual_variants(device: str) -> list[str]:
    """List the variants that a device is usually asked about; the peer's kernel only where it is installed."""
    if torch.device(device).type != "cuda":
        return ["mesa", "cg", "cg-30", "linear", "softmax"]
    return ["mesa", "torch", *(["fla"] if peer_release() else []), "linear", "softmax"]


def list_cases(arguments: argparse.Namespace) -> list[Case]:
    """List the cases that the arguments ask for, length by length."""
    rest = {name: getattr(arguments, name) for name in ("device", "seed")}
    if arguments.recorded:
        lengths = arguments.length or [None]
        return [
            recorded_case(file, length, {**rest, "dtype": dtype})
            for dtype in arguments.dtype
            for file in arguments.recorded
            for length in lengths
        ]
    return [
        Case(length, arguments.batch, arguments.heads, arguments.size, keys, gamma, dtype=dtype, **rest)
        for dtype in arguments.dtype
        for keys in arguments.keys
        for gamma in arguments.gamma
        for length in arguments.length
    ]


def measure_case(case: Case, arguments: argparse.Namespace, with_memory: bool) -> Iterator[dict[str, VariantRow]]:
    """Measure all variants on one case and give all rows again whenever one of them knows more.

    First comes a time of each alone, after its warm-up; then the times turn by turn; then, variant by variant, peak
    memory, errors and steps.
    """
    operands = make_operands(case)
    cuda = torch.device(case.device).type == "cuda"
    names = [
        name
        for word in arguments.variants
        if word not in QUADRATIC or cuda or case.length <= QUADRATIC_LIMIT
        for name in spell(word, arguments.tolerance)
    ]
    variants = {name: find(name) for name in names}
    leaves, upstream = operands.leaves(), torch.randn_like(operands.value)
    actions = {name: passes(variant, operands, leaves, upstream) for name, variant in variants.items()}
    rows: dict[str, VariantRow] = {}
    for name, variant in variants.items():
        times = interleave(actions[name], 1, arguments.warmup, case.device)
        rows[name] = VariantRow(name, *times.values(), backend=backend_of(variant, operands))
        yield rows
    together = {(name, way): action for name, pair in actions.items() for way, action in pair.items()}
    times = interleave(together, arguments.repeats, 0, case.device)
    rows = {name: replace(row, forward=times[name, "forward"], both=times[name, "both"]) for name, row in rows.items()}
    yield rows
    if with_memory:
        for name in names:
            memory = measure(case, name) if cuda else measure_apart(case, name)
            rows = {**rows, name: replace(rows[name], memory=memory)}
            yield rows
    truth = find_truth(operands, upstream=arguments.upstream, rows=arguments.truth_rows)
    for name, variant in variants.items():
        errors = find_errors(variant, operands, truth) if variant.solves else None
        rows = {**rows, name: replace(rows[name], errors=errors, steps=mean_steps(variant, operands))}
        yield rows


def to_line(row: VariantRow, rows: list[VariantRow]) -> dict[str, Any]:
    """Write a row as the fields of a JSON line: seconds, bytes, steps, errors and ratios."""
    both = {other.name: other.both for other in rows}
    errors = None if row.errors is None else {**asdict(row.errors), "gradient": row.errors.gradient}
    return {
        "variant": row.name,
        "backend": row.backend,
        "forward_s": asdict(row.forward),
        "forward_backward_s": asdict(row.both),
        "peak_bytes": row.memory,
        "steps": row.steps,
        "errors": errors,
        "speedup_on": {name: ratio(both.get(name), row.both) for name in BASELINES},
        "time_over_linear": ratio(row.both, both.get("linear")),
    }


def show_case(case: Case, lines: list[dict[str, Any]]) -> None:
    """Print the table of a case, and what must be known to read it."""
    ratios: dict[str, Callable[[dict[str, Any]], str]] = {
        f"faster\nthan\n{name}": lambda line, name=name: records.number(line["speedup_on"][name])
        for name in (line["variant"] for line in lines)
        if name in BASELINES
    }
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "variant": lambda line: line["variant"],
        "forward\nms": lambda line: records.milliseconds(line["forward_s"]),
        "fwd + bwd\nms": lambda line: records.milliseconds(line["forward_backward_s"]),
        "µs per\ntoken": lambda line: records.number(
            line["forward_backward_s"]["median"] / (case.length * case.batch), 1e6
        ),
        **ratios,
        "times\nlinear": lambda line: records.number(line["time_over_linear"]),
        "peak\nMiB": lambda line: records.number((line["peak_bytes"] or {}).get("both"), 2.0**-20),
        "steps": lambda line: records.number(line["steps"]),
        "error": lambda line: records.error((line["errors"] or {}).get("output")),
        "99 % of\ntokens": lambda line: records.error((line["errors"] or {}).get("quantile")),
        "gradient\nerror": lambda line: records.error((line["errors"] or {}).get("gradient")),
    }
    notes = [f"{line['variant']}: back end {line['backend']}" for line in lines if line["backend"]]
    first = next((line["errors"]["from_token"] for line in lines if line["errors"]), 0)
    if first:
        notes.append(f"errors are those of the tokens from {first} on; gradients' errors those of the first tokens")
    records.show_lines(case.name, columns, lines, notes)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print and write all cases; return the JSON lines."""
    shared = records.describe_run("bench_operator", arguments)
    shared["copied_bytes_per_s"] = copy_rate(arguments.device, arguments.quick)
    print(f"measured bandwidth of a copy, GB/s: {shared['copied_bytes_per_s'] / 1e9:.0f}")
    peaks = {name: large_product(DTYPES[name], arguments.device, arguments.quick) for name in arguments.dtype}
    print("measured peak, GFLOP/s: " + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items()))
    written = []
    for place, case in enumerate(list_cases(arguments)):
        with_memory = arguments.memory == "all" or (arguments.memory == "first" and not place)
        about = {**shared, "peak_flops_per_s": peaks[case.dtype], "case": asdict(case)}
        before: dict[str, VariantRow] = {}
        rows: list[VariantRow] = []
        lines: list[dict[str, Any]] = []
        for known in measure_case(case, arguments, with_memory):
            rows = list(known.values())
            lines = [{**about, **to_line(row, rows)} for row in rows]
            if arguments.out is not None:
                news = [line for row, line in zip(rows, lines, strict=True) if before.get(row.name) != row]
                records.append_lines(arguments.out, news)
            before = dict(known)
        show_case(case, lines)
        written += lines
    return written


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    return records.run_program("bench_operator", run, parse(words))


if __name__ == "__main__":
    sys.exit(main())

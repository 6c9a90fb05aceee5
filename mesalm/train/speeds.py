"""How fast cards and this machine train: by calculation, as an earlier run did, or as a few steps made now."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from mesalm.data.stream import Position, RowStream
from mesalm.journal import read_journal
from mesalm.model.mixers import MIXERS
from mesalm.settings import Settings, known
from mesalm.train.initial import set_step
from mesalm.train.launch import make_accelerator
from mesalm.train.optim import build_optimiser
from mesalm.train.overrides import apply_overrides, parse_override
from mesalm.train.randomness import seed_everything
from mesalm.train.recipe import Recipe
from mesalm.train.step import backward, clip_gradient, compiled, measured_steps, moved


@dataclass(frozen=True)
class Card:
    """A card: dense bfloat16 peak in operations per second, memory in bytes, bandwidths in bytes per second.

    ``link`` is one direction between cards of a machine, ``network`` a card's share of the network between machines.
    ``device`` is the name by which CUDA knows it.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    network: float
    device: str


CARDS = {
    "H100": Card(989e12, 80e9, 3.35e12, link=450e9, network=50e9, device="NVIDIA H100 80GB HBM3"),
    "H200": Card(989e12, 141e9, 4.8e12, link=450e9, network=50e9, device="NVIDIA H200"),
    "A100": Card(312e12, 80e9, 2.04e12, link=300e9, network=25e9, device="NVIDIA A100-SXM4-80GB"),
    "4090": Card(165e12, 24e9, 1.01e12, link=32e9, network=3e9, device="NVIDIA GeForce RTX 4090"),
}
"""NVIDIA's data sheets of H100 SXM, H200 SXM, A100 SXM 80 GB and RTX 4090 (there 32-bit sums), links by NVLink or PCIe.

Networks are those of DGX H100 and DGX A100, 400 and 200 Gbit/s per card; 200 Gbit/s per machine of eight RTX 4090.
"""


def known_peak(name: str) -> float | None:
    """Return the dense bfloat16 peak of a device by its full name, None where the table lacks it."""
    return next((card.peak for card in CARDS.values() if name == card.device), None)


def local_peak(device: torch.device) -> float | None:
    """Return `known_peak` of a device of this machine."""
    return known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class Assumptions(Settings):
    """What a plan takes for granted; each field can be given anew."""

    solver_steps: float = Field(default=25.0, ge=0, description="Mean steps of a mesa solve; see docs/gpu.md.")
    maps: float = Field(default=0.4, gt=0, le=1, description="Share of a card's peak that linear maps reach.")
    mixers: dict[Annotated[str, known(lambda: MIXERS, "a mixer")], Annotated[float, Field(gt=0, le=1)]] = Field(
        default={"mesa": 0.21, "linear": 0.0076, "softmax": 0.44},
        description="Share of a card's peak that each mixer's operator reaches, as on the H100 of docs/gpu.md.",
    )
    link: float = Field(
        default=0.8, gt=0, le=1, description="Share of the nominal bandwidth that communication reaches."
    )
    overlap: float = Field(default=0.8, ge=0, le=1, description="Share of communication that computation can hide.")
    network: float | None = Field(default=None, gt=0, description="Bytes per second between machines, per card.")
    machine: int = Field(default=8, gt=0, description="Cards per machine.")
    disk: float = Field(default=1e9, gt=0, description="Bytes per second at which checkpoints are written.")


def read_assumptions(texts: Sequence[str]) -> Assumptions:
    """Read ``key=value`` over the defaults. Raises SettingsError, one line, for what is none of them."""
    data = Assumptions().model_dump()
    apply_overrides(data, [parse_override(text) for text in texts], Assumptions)
    return Assumptions.build(data)


@dataclass(frozen=True)
class Rate:
    """A speed in tokens per second of all processes together, the solver steps meanwhile, and where it is from."""

    tokens_per_second: float
    solver_steps: float | None
    source: str


def calculated_rate(
    flops: Mapping[str, float],
    *,
    hardware: str,
    processes: int,
    tokens: int,
    update: float,
    exchange: float,
    assumptions: Assumptions,
) -> Rate:
    """Return the speed at which cards should train; a calculation, nothing is measured.

    flops: operations per token, of the linear maps ("maps") and of each mixer; tokens: those of a step on one card;
    update: bytes that the optimiser reads and writes; exchange: bytes that a card sends in a step, of which computing
    hides what ``overlap`` says, and never more than a backward pass takes.
    """
    card = CARDS[hardware]
    shares = {"maps": assumptions.maps, **assumptions.mixers}
    computing = tokens * sum(count / (shares.get(part, assumptions.maps) * card.peak) for part, count in flops.items())
    network = min(card.link, assumptions.network or card.network)
    wire = exchange / (assumptions.link * (card.link if processes <= assumptions.machine else network))
    seconds = computing + update / card.bandwidth + wire - min(assumptions.overlap * wire, computing * 2 / 3)
    return Rate(tokens * processes / seconds, None, f"a calculation for {processes} x {hardware}, not a measurement")


SHAPE = ("batch_rows", "micro_rows", "compile", "gradient_checkpointing", "device")
"""Settings of ``train`` on which a speed depends."""


def device_name(device: torch.device) -> str:
    """Return a device with the name of its hardware where that is known."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()}"


def local_device(recipe: Recipe) -> str:
    """Return the name of the device on which this process would train a recipe."""
    card = recipe.train.device == "auto" and torch.cuda.is_available()
    return device_name(torch.device("cuda" if card else "cpu"))


def earlier_rate(recipe: Recipe, device: str, world: int) -> Rate | None:
    """Return the speed of the newest run beside this one with the same shape on the same device, None without one."""
    found = []
    for path in recipe.folder.parent.glob("*/journal.jsonl"):
        # those of other runs are not asked to be whole, nor to be there still
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True):
        try:
            events = read_journal(path)
        except (ValueError, OSError):
            continue
        start = next((event for event in reversed(events) if event["event"] == "start" and "recipe" in event), None)
        steps = [event for event in events if event["event"] == "step"]
        if start is None or not steps or (_hardware(start["device"]), start["world"]) != (_hardware(device), world):
            continue
        if _shape(start["recipe"]) == _shape(recipe.plain()):
            speed = statistics.median(event["tokens_per_second"] for event in steps[len(steps) // 2 :])
            return Rate(speed, steps[-1].get("solver_steps"), f"as {path.parent}")
    return None


def _hardware(device: str) -> str:
    return device.partition(": ")[2]


def _shape(recipe: Mapping[str, Any]) -> Any:
    """Return what of a recipe's plain data decides its speed."""
    train, data = recipe.get("train", {}), recipe.get("data", {})
    bf16 = train.get("precision") == "bf16"  # a run records what auto became
    return (
        recipe.get("model"),
        recipe.get("init_from"),  # without fields of model, its weights say how large it is
        [data.get(key) for key in ("vocab_size", "tokenizer", "sequence_length")],
        recipe.get("optim", {}).get("name"),
        [train.get(key) for key in SHAPE],
        recipe.get("parallelism", {}).get("context", 1),
        bf16,
    )


def probed_rate(recipe: Recipe, config: PreTrainedConfig, rows: Any = None, seconds: float = 10.0) -> Rate:
    """Train a fresh model for some seconds, at least one step after a first; rows of random tokens without any."""
    accelerator = make_accelerator(device=recipe.train.device, precision=recipe.train.precision.replace("auto", "fp32"))
    seed_everything(recipe.seed)
    model: Any = AutoModelForCausalLM.from_config(config).to(accelerator.device)
    optimiser = build_optimiser(model, recipe.optim)
    length, count = recipe.data.sequence_length, recipe.train.batch_rows
    if rows is None:
        ids = torch.randint(config.vocab_size, (count, length)).numpy()
        rows = [{"input_ids": row, "segments": np.array([length])} for row in ids]
    stream = RowStream(rows, Position(recipe.seed), count, micro_rows=recipe.micro_rows(1))
    set_step(model, recipe, stream.micro_rows)
    wrapped = compiled(model, recipe.train.compile)
    wrapped.train()
    batches, times = iter(stream), [time.perf_counter()]
    while len(times) < 3 or times[-1] - times[1] < seconds:  # the first step is a warm-up
        micro = [moved(next(batches), accelerator.device) for _ in range(stream.micro_batches)]
        backward(accelerator, wrapped, micro, None).item()
        clip_gradient(accelerator, model, recipe.train.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
    speed = count * length / statistics.median(np.diff(times[1:]))
    return Rate(float(speed), measured_steps(model), f"measured now in {len(times) - 2} steps")

"""Cards by name, what is taken for granted of them, and the speed that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator

from mesalm.model.mixers import MIXERS
from mesalm.settings import Settings, one_of
from mesalm.train.overrides import apply_overrides, parse_override


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

    solver_steps: float = Field(default=25.0, ge=0, description="Mean steps of a mesa solve; docs/gpu.md.")
    maps: float = Field(default=0.4, gt=0, le=1, description="Share of a card's peak that linear maps reach.")
    mixers: dict[str, float] = Field(
        default={"mesa": 0.21, "linear": 0.0076, "softmax": 0.44},
        description="Share of a card's peak that each mixer's operator reaches; one H100 in docs/gpu.md.",
    )
    link: float = Field(default=0.8, gt=0, le=1, description="Share of the nominal bandwidth that exchanges reach.")
    overlap: float = Field(default=0.8, ge=0, le=1, description="Share of exchanges that computing hides, if it can.")
    network: float | None = Field(default=None, gt=0, description="Bytes per second and card between machines.")
    machine: int = Field(default=8, gt=0, description="Cards of a machine.")
    disk: float = Field(default=1e9, gt=0, description="Bytes per second in which checkpoints are written.")

    @field_validator("mixers")
    @classmethod
    def _known_mixers(cls, mixers: dict[str, float]) -> dict[str, float]:
        for name, share in mixers.items():
            one_of(name, MIXERS, "a mixer")
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {share}")
        return mixers


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

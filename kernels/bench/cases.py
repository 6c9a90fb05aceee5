"""Make what every variant of a comparison is given: operands, synthetic or of trained models, and small models."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.model import mixers

KEYS = ("iid", "corr")
GAMMAS = (1.0, 0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.5)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

BASELINE = "softmax"
"""The mixer that whole models of other mixers are compared with."""
MIXERS = ["mesa", "linear", BASELINE]
"""Those that are measured unless others are named."""
MODEL_SIZES = {"width": (192, 48), "vocabulary": (4096, 64)}
"""Sizes of a model where none are given, and with --quick; see `records.read_arguments`."""

GATE_SPREAD = 0.5
"""Standard deviation of log(-log gamma) around its mean."""
PERSISTENCE = 0.7
"""Correlation of a token's key with the one before it, where keys are correlated."""
SPECTRUM = 1.0
"""Exponent of the power law of the keys' variances over their dimensions."""
QUERY_OVERLAP = 0.5
"""Share of a query that is its token's own key, where keys are correlated."""


class CaseOperands(NamedTuple):
    """What mesa attention reads.

    query, key `[B, T, H, K]`, value `[B, T, H, V]`, log_forget, input_gate `[B, T, H]`, ridge `[H, K]`. Gates and
    ridge are float32 or better, the others of the case's dtype.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    ridge: Tensor

    def tokens(self, first: int, last: int) -> CaseOperands:
        """Keep the tokens from `first` up to and without `last`."""
        return CaseOperands(*(x if x is self.ridge else x[:, first:last] for x in self))

    def rows(self, count: int | None) -> CaseOperands:
        """Keep the first sequences; all of them for None."""
        return CaseOperands(*(x if x is self.ridge else x[:count] for x in self))

    def heads(self, first: int, last: int) -> CaseOperands:
        """Keep the heads from `first` up to and without `last`."""
        here = slice(first, last)
        return CaseOperands(*(x[here] if x is self.ridge else x[:, :, here] for x in self))

    def double(self) -> CaseOperands:
        """Turn every operand into float64."""
        return CaseOperands(*(x.double() for x in self))

    def leaves(self) -> CaseOperands:
        """Copy every operand into a leaf of its own that collects gradients."""
        return CaseOperands(*(x.detach().clone().requires_grad_() for x in self))


@dataclass(frozen=True)
class Case:
    """Operands described: synthetic ones by `keys` and the mean `gamma`, or those of the file `recorded`.

    Of a recorded case, made by `recorded_case`, sizes and gamma are what the file has; all its layers' heads stand side
    by side.
    """

    length: int
    batch: int = 1
    heads: int = 8
    size: int = 64
    keys: str = "corr"
    gamma: float = 0.99
    recorded: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    @property
    def name(self) -> str:
        """Say in a few words which case this is."""
        origin = f"{self.keys} keys, gamma {self.gamma:g}" if self.recorded is None else Path(self.recorded).stem
        return f"{origin}, {self.length} tokens"


def make_operands(case: Case) -> CaseOperands:
    """Make the operands of a case, drawn on its device: the same numbers every time on one kind of device.

    Raises ValueError for keys that do not exist, a gamma outside (0, 1], or a recorded file that is too short.
    """
    if case.recorded is not None:
        tensors = _recorded(Path(case.recorded), case.length)
    else:
        tensors = _synthetic(case)
    dtype = DTYPES[case.dtype]
    gates = torch.promote_types(dtype, torch.float32)
    projections = (x.to(case.device, dtype) for x in tensors[:3])
    return CaseOperands(*projections, *(x.to(case.device, gates) for x in tensors[3:]))


def _synthetic(case: Case) -> CaseOperands:
    """Draw unit queries and keys, normal values, log-normal forgetting, and a ridge as a model starts from.

    Mean gamma is exp of minus the mean of -log gamma. Input gates are sigmoid(N(0, 1)), the ridge is
    0.25 + softplus(N(-1, 1)).
    """
    if case.keys not in KEYS:
        raise ValueError(f"keys is {case.keys!r}: must be one of {', '.join(KEYS)}")
    if not 0.0 < case.gamma <= 1.0:
        raise ValueError(f"gamma is {case.gamma}: must be above 0 and at most 1")
    generator = torch.Generator(case.device).manual_seed(case.seed)
    B, T, H, K = case.batch, case.length, case.heads, case.size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=case.device)

    key, query = normal(B, T, H, K), normal(B, T, H, K)
    if case.keys == "corr":
        key = _correlate(key, normal(H, K))
        query = QUERY_OVERLAP * key + (1.0 - QUERY_OVERLAP) * _correlate(query, normal(H, K))
    key, query = (torch.nn.functional.normalize(x, dim=-1) for x in (key, query))
    # the exponent's own mean is taken out, so that the mean of -log gamma is what the case names
    spread = torch.exp(GATE_SPREAD * normal(B, T, H) - 0.5 * GATE_SPREAD**2)
    log_forget = math.log(case.gamma) * spread
    ridge = 0.25 + torch.nn.functional.softplus(normal(H, K) - 1.0)
    return CaseOperands(query, key, normal(B, T, H, K), log_forget, normal(B, T, H).sigmoid(), ridge)


def _correlate(noise: Tensor, mean: Tensor) -> Tensor:
    """Return white noise `[B, T, H, K]` persistence in time, a power-law spectrum over K, and the mean `[H, K]`.

    The recurrence y[t] = p y[t - 1] + e[t] is summed by doubling: sums over 1, 2, 4, ... tokens.
    """
    scale = torch.arange(1, noise.shape[-1] + 1, dtype=noise.dtype, device=noise.device) ** (-0.5 * SPECTRUM)
    rows = noise * (1.0 - PERSISTENCE**2) ** 0.5
    rows[:, 0] = noise[:, 0]
    reach = 1
    while reach < noise.shape[1] and PERSISTENCE**reach > torch.finfo(noise.dtype).tiny:
        rows = torch.cat((rows[:, :reach], rows[:, reach:] + PERSISTENCE**reach * rows[:, :-reach]), 1)
        reach *= 2
    return (rows + 0.5 * mean) * scale


def _recorded(file: Path, length: int | None) -> CaseOperands:
    """Read a trained model's operands, the heads of all its layers side by side, cut to `length` tokens if given."""
    from mesalm.lab.inspection.recorded import load_recorded

    layers = load_recorded(file)
    if not layers:
        raise ValueError(f"{file}: holds no layer; make it with mesalm inspect MODEL --record {file}")
    T = layers[0]["key"].shape[1]
    if length is not None and length > T:
        raise ValueError(f"{file}: holds {T} tokens, fewer than the {length} asked for; give a smaller --length")
    fields: dict[str, list[Tensor]] = {name: [] for name in CaseOperands._fields}
    for layer in layers:
        H = layer["query"].shape[2]
        for name in CaseOperands._fields:
            x = layer[name]
            heads = 0 if name == "ridge" else 2
            # a key head that several query heads read is written out once for each of them
            x = x.repeat_interleave(H // x.shape[heads], heads) if x.shape[heads] != H else x
            fields[name].append(x if name == "ridge" else x[:, :length])
    joined = {name: torch.cat(parts, 0 if name == "ridge" else 2) for name, parts in fields.items()}
    return CaseOperands(**joined)


def recorded_case(file: str, length: int | None, rest: dict[str, Any]) -> Case:
    """Describe a recorded file cut to `length` tokens, all of them if None; `rest` holds dtype, device and seed.

    Raises ValueError for a file that holds no operands.
    """
    whole = _recorded(Path(file), length)
    B, T, H, K = whole.query.shape
    return Case(T, B, H, K, keys="recorded", gamma=float(whole.log_forget.mean().exp()), recorded=file, **rest)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes and mixers of whole models, and their device."""
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, help="default 192")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, help="default 4096")
    parser.add_argument("--mixers", nargs="+", default=MIXERS, choices=list(mixers.MIXERS))
    parser.add_argument("--device", default="cpu")


def build_model(arguments: argparse.Namespace, mixer: str, longest: int, **fields: Any) -> MesaForCausalLM:
    """Build a model of the sizes asked for, with one mixer, for sequences of up to `longest` tokens."""
    torch.manual_seed(arguments.seed)
    config = MesaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        mixers=mixer,
        max_position_embeddings=longest,
        **fields,
    )
    return MesaForCausalLM(config)

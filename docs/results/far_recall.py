"""Print how far new mesa layers read at given forget gates, on recall of pairs from far back.

python docs/results/far_recall.py --length 1024 --biases 0 2 4 6

Four pairs, keys and values of 96 each among 64 kinds of filler: pairs in the second quarter of a row, their keys again
in the third. Printed are the mean forget gate, the change of the logits at the second keys when the values are
exchanged for others, relative to their spread, and (tr H)^2 / tr H^2 of the last token's gram states.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.lab.inspection.capture import Reading, watched

FILLER, KEYS, VALUES = range(64), range(64, 160), range(160, 256)
PAIRS = 4


def draw(count: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows [count, length], the same with other values, and the places of the second keys [count, PAIRS]."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(FILLER), (count, length), generator=random)
    places = torch.empty(count, PAIRS, dtype=torch.long)
    others = rows.clone()
    for row in range(count):
        keys = KEYS[0] + torch.randperm(len(KEYS), generator=random)[:PAIRS]
        values = VALUES[0] + torch.randperm(len(VALUES), generator=random)[: 2 * PAIRS]
        shown, asked = (
            start + 2 * torch.randperm(length // 8, generator=random)[:PAIRS] for start in (length // 4, length // 2)
        )
        for ids, chosen in ((rows, values[:PAIRS]), (others, values[PAIRS:])):
            ids[row, shown], ids[row, shown + 1], ids[row, asked] = keys, chosen, keys
        places[row] = asked
    return rows, others, places


def participation(reading: Reading) -> float:
    """Return (tr H)^2 / tr H^2 of the last token's gram states, mean over rows and heads."""
    after = reading.log_forget.double().flip(1).cumsum(1).flip(1) - reading.log_forget.double()
    weight = after.exp() * reading.input_gate
    gram = torch.einsum("btg,btgi,btgj->bgij", weight, reading.key.double(), reading.key.double())
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return float((trace.square() / gram.square().sum((-2, -1))).mean())


@torch.inference_mode()
def measure(bias: float, length: int, count: int, seed: int) -> tuple[float, float, list[float]]:
    """Return the mean forget gate, the change of the logits, and the ranks by layer, of a new model."""
    torch.manual_seed(seed)
    config = MesaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        mixers="mesa",
        forget_bias=bias,
        forget_cap=None,
    )
    model = MesaForCausalLM(config).eval()
    rows, others, places = draw(count, length, seed)
    readings: list[Reading] = []
    with watched(model, readings.append):
        logits = model(rows).logits
    changed = model(others).logits
    at = torch.arange(count)[:, None], places
    moved = (changed[at] - logits[at]).norm() / (logits[at] - logits[at].mean(-1, keepdim=True)).norm()
    gate = torch.stack([reading.log_forget for reading in readings]).exp().mean()
    return float(gate), float(moved), [participation(reading) for reading in readings]


def main() -> None:
    """Print a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--length", type=int, default=1024)
    options.add_argument("--biases", nargs="+", type=float, default=[0.0, 2.0, 4.0, 6.0])
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    print("| forget bias | mean gate | change of the logits | ranks |\n|---|---|---|---|", flush=True)
    for bias in given.biases:
        gate, moved, ranks = measure(bias, given.length, given.rows, given.seed)
        print(f"| {bias:g} | {gate:.3f} | {moved:.1e} | {', '.join(f'{rank:.1f}' for rank in ranks)} |", flush=True)


if __name__ == "__main__":
    main()

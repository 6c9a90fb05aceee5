"""Print what swapping layers of a run's softmax model costs: the loss before, after the swap, and without the layers.

python docs/results/conversion_losses.py RUN --rows 48
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch

from mesalm.data.packing import segment_positions
from mesalm.data.prepared import Prepared
from mesalm.hub.calibration_text import own_rows
from mesalm.hub.carry_over import open_softmax_model
from mesalm.hub.convert import choose_layers
from mesalm.hub.swap import swap_layers
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.runs import RunRecord


def held_out(run: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return evenly spaced validation rows of a run and their positions, [count, T] each."""
    rows = Prepared(RunRecord(run).start["prepared"]).rows("valid")
    chosen = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count)]
    ids = np.stack([row["input_ids"] for row in chosen]).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(np.stack([segment_positions(row["segments"]) for row in chosen]))


@torch.inference_mode()
def loss(model: MesaForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> float:
    """Return the mean loss in nats per token."""
    parts = [
        model(row[None], position_ids=place[None]).logits[0, :-1] for row, place in zip(ids, positions, strict=True)
    ]
    return float(torch.nn.functional.cross_entropy(torch.cat(parts).float(), ids[:, 1:].flatten()))


def without(model: MesaForCausalLM, layers: list[int]) -> MesaForCausalLM:
    """Return a copy of a model whose named layers' mixers add nothing."""
    removed = copy.deepcopy(model)
    for layer in layers:
        torch.nn.init.zeros_(removed.model.layers[layer].mixer.o_proj.weight)
    return removed


def main() -> None:
    """Print a line for each choice of layers."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--rows", type=int, default=48)
    options.add_argument("--layers", nargs="+", default=["0", "1", "2", "3", "every-2", "all"])
    given = options.parse_args()
    model, text = open_softmax_model(str(given.run)), held_out(given.run, given.rows)
    torch.manual_seed(0)
    rows = own_rows(model, 32, min(256, model.config.max_position_embeddings))
    print("| layers | swapped for mesa | for linear | removed |\n|---|---|---|---|")
    print(f"| none | {loss(model, *text):.3f} | | |", flush=True)
    for words in given.layers:
        layers = choose_layers(words, model.config.layer_mixers)
        swapped = [loss(swap_layers(model, layers, mixer, rows, quiet=True)[0], *text) for mixer in ("mesa", "linear")]
        removed = loss(without(model, layers), *text)
        print(f"| {words} | {swapped[0]:.3f} | {swapped[1]:.3f} | {removed:.3f} |", flush=True)


if __name__ == "__main__":
    main()

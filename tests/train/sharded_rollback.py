"""Train a small network over two spikes that take it back; run by test_sharded.py and test_machines.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sharded_regression import Network, collate

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.data.stream import Position, RowStream
from mesalm.journal import Journal
from mesalm.train.checkpoint import Checkpoints, load_weights, save_weights
from mesalm.train.guard import Guard
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Loop, Probe
from mesalm.train.sharded import full_state, is_sharded

SPIKES = (24, 30)
"""Steps with a row that is far off, counted from 0: each the first after a checkpoint."""


class Rows(RowStream):
    """A stream in which a row of the main process is far off in the steps of `SPIKES`."""

    def __iter__(self) -> Any:
        for step, batch in enumerate(super().__iter__()):
            if step in SPIKES and self.rank == 0:
                batch["y"][0] += 1e3
            yield batch


def tied(accelerator: Accelerator, folder: Path) -> dict[str, torch.Tensor]:
    """Save a model whose embeddings are tied, load it into another one, and return the weights of both."""
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    kept, other = (MesaForCausalLM(MesaConfig(num_attention_heads=2, **sizes)) for _ in range(2))
    if accelerator.is_local_main_process:
        folder.mkdir()
        save_weights(kept, folder)
    accelerator.wait_for_everyone()
    accelerator.prepare(other, torch.optim.SGD(other.parameters()))  # shards it in place
    load_weights(other, folder)
    return {"kept": kept.state_dict(), "loaded": full_state(other)}


def main() -> None:
    torch.set_num_threads(1)
    target, asynchronous = Path(sys.argv[1]), sys.argv[2] == "True"
    accelerator = make_accelerator(device="cpu", precision="fp32", sharding=True)
    torch.manual_seed(1)
    model, world = Network(), accelerator.num_processes
    rows = list(torch.randn(64, 4, generator=torch.Generator().manual_seed(5)))
    stream = Rows(
        rows, Position(3), 4, rank=accelerator.process_index, world=world, micro_rows=4 // world, collate=collate
    )
    losses: list[float] = []
    back: list[dict[str, torch.Tensor]] = []

    def note(model: torch.nn.Module, step: int) -> list[dict[str, Any]]:
        losses.append(loop.tally.loss)
        if step - 1 in SPIKES:
            back.append({name: weight.clone() for name, weight in full_state(model).items()})
        return []

    target.mkdir(parents=True, exist_ok=True)
    with Journal(target / "journal.jsonl" if accelerator.is_main_process else None) as journal:
        loop = Loop(
            model,
            stream,
            torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True),
            accelerator=accelerator,
            steps=36,
            learning_rate=lambda step: 1e-2,
            clip=0.5,
            guard=Guard(10, "rollback"),
            journal=journal,
            checkpoints=Checkpoints(target / "checkpoints", every=6, keep=9, asynchronous=asynchronous),
            probes=[Probe("losses", 1, note)],
        )
        loop.fit()
    found = {"weights": full_state(model), "losses": losses, "back": back, "sharded": is_sharded(model)}
    found["tied"] = tied(accelerator, target / "tied")
    torch.save(found, target / f"{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()

"""Train a small network over two steps that are not finite, and save its weights; run by test_sharded.py."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers.utils import ModelOutput

from mesalm.data.stream import Position, RowStream
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Loop, Probe
from mesalm.train.sharded import full_state, is_sharded

BAD = (3, 6)
"""Steps whose rows are not finite, counted from 0."""


class Network(torch.nn.Module):
    """Two layers and a squared error; a row that is not finite makes the loss of its process so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        # FSDP2 finds the tensors to go backward from in outputs that torch can take apart
        return ModelOutput(loss=(self.body(x).squeeze(-1) - y).square().mean())


def collate(items: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    x = torch.stack(items)
    return {"x": x, "y": x.sin().sum(-1)}


class Rows(RowStream):
    """A stream in which the main process gets a row that is not finite in the steps of `BAD`."""

    def __iter__(self) -> Any:
        for step, batch in enumerate(super().__iter__()):
            if step in BAD and self.rank == 0:
                batch["x"][0, 0] = torch.inf
            yield batch


def main() -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator(device="cpu", precision="fp32", sharding=True)
    torch.manual_seed(1)
    model = Network()
    rows = list(torch.randn(64, 4, generator=torch.Generator().manual_seed(5)))
    world = accelerator.num_processes
    stream = Rows(
        rows, Position(3), 4, rank=accelerator.process_index, world=world, micro_rows=4 // world, collate=collate
    )
    outcome = Loop(
        model,
        stream,
        torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True),
        accelerator=accelerator,
        steps=10,
        learning_rate=lambda step: 1e-2,
        clip=0.5,
        log_every=4,  # step 4, which is read at once, and step 7, which is not
        read_every=4,
        probes=[Probe("valid", 5, lambda model, step: [], at_end=False)],
    ).fit()
    weights = full_state(model)
    if accelerator.is_main_process:
        found = {"weights": weights, "skipped": outcome.skipped, "sharded": is_sharded(model)}
        torch.save(found, sys.argv[1])
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()

"""Ask a model whose processes have uneven shares, and save what each of them found; run by test_sharded_reading.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from mesa_eval.reading.processes import Processes
from mesa_eval.reading.scoring import Scorer
from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.train.launch import make_accelerator


class Broken(Scorer):
    """A scorer that fails at the first batch of the main process."""

    def _score_batch(self, *batch: Any) -> Any:
        if self.processes.main:
            raise ValueError("broken on the main process")
        return super()._score_batch(*batch)


def main() -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator(device="cpu", precision="fp32", sharding=True)
    model: Any = open_model(sys.argv[1], dtype=torch.float32, device="cpu")
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    place = Processes(accelerator.process_index, accelerator.num_processes, "cpu")
    arguments = (model, open_tokenizer(sys.argv[1]))
    scorer = Scorer(*arguments, batch_tokens=120, quiet=True, processes=place)
    scorer.logits_at_once = 40 * len(arguments[1])  # so that long rows are read in pieces
    generator = np.random.default_rng(1)
    heads = [generator.integers(2, 258, length).tolist() for length in (70, 72, 40)]
    rows = [heads[number % 3] + generator.integers(2, 258, 3 + number % 5).tolist() for number in range(13)]
    found: dict[str, Any] = {"sharded": isinstance(model, FSDPModule)}
    for name, shared in (("whole", None), ("continued", [number % 3 for number in range(13)])):
        found[name] = [torch.from_numpy(scores.nats) for scores in scorer.token_scores(rows, shared=shared)]
    found["one"] = [torch.from_numpy(scores.nats) for scores in scorer.token_scores(rows[:1])]  # others have no batch
    found["written"] = scorer.generate(["a", "the cat sat", "one two three four", "x" * 30], 24, stop="e")
    try:
        Broken(*arguments, batch_tokens=120, quiet=True, processes=place).token_scores(rows)
    except ValueError as error:
        found["error"] = str(error)
    torch.save(found, Path(sys.argv[2]) / f"{place.index}-of-{place.count}.pt")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()

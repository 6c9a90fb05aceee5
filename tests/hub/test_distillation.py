"""A converted model is distilled from its original with transformers' Trainer, as docs/conversion.md shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from mesalm import MesaForCausalLM
from mesalm.hub.swap import swap_layers


class Distiller(Trainer):
    """Train a model towards the next-token distributions of a teacher."""

    def __init__(self, *arguments: Any, teacher: torch.nn.Module, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.teacher = teacher.eval()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        with torch.no_grad():
            wanted = self.teacher(inputs["input_ids"]).logits.log_softmax(-1)
        outputs = model(inputs["input_ids"])
        found = outputs.logits.log_softmax(-1)
        loss = torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean()
        return (loss, outputs) if return_outputs else loss


def divergence(student: MesaForCausalLM, teacher: MesaForCausalLM, rows: torch.Tensor) -> float:
    with torch.no_grad():
        wanted, found = teacher(rows).logits.log_softmax(-1), student(rows).logits.log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_distilling_brings_a_converted_model_nearer_to_its_original(
    layers: list[int], copying_model: MesaForCausalLM, copying_rows: Callable[[int, int], torch.Tensor], tmp_path: Path
) -> None:
    student, _ = swap_layers(copying_model, layers, "mesa", copying_rows(64, 1001), quiet=True)
    unseen = copying_rows(64, 1002)
    before = divergence(student, copying_model, unseen)
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row} for row in copying_rows(320, 7)]
    Distiller(model=student, args=settings, train_dataset=rows, teacher=copying_model).train()
    assert divergence(student, copying_model, unseen) < 0.95 * before

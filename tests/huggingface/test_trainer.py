"""transformers' Trainer, and what TRL builds on it, against loops made by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from mesalm import MesaForCausalLM, MesaForSequenceClassification
from mesalm.train.optim import parameter_groups

Build = Callable[..., MesaForCausalLM]
Rows = list[dict[str, Any]]
RATE = 0.05


def rows(count: int) -> Rows:
    """Return texts of mixed lengths whose first tokens, the prompt, are not scored."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for place in range(count):
        ids = torch.randint(2, 61, (5 + 3 * (place % 4),), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (1 + place % 3) + ids[1 + place % 3 :]})
    return made


def padded(batch: Rows) -> dict[str, torch.Tensor]:
    """Return a batch padded on the right."""
    longest = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    full = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in batch]
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in full])
        for name, value in fill.items()
    }


def train(
    model: Any, data: Rows, folder: Path, collate: Callable = padded, resume: bool = False, **options: Any
) -> Trainer:
    """Train by plain gradient descent, so that a wrong scale of the loss shows in the weights."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=2,
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **{"save_strategy": "no", **options},
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def descend(model: Any, groups: list[Rows], smoothing: float = 0.0) -> list[float]:
    """Do the same by hand: each group of rows is one step, its loss the mean over all its scored tokens."""
    optimiser, losses = torch.optim.SGD(model.parameters(), RATE), []
    model.train()
    for group in groups:
        total, count = torch.zeros(()), 0
        for row in group:  # row by row: no padding can be at fault
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(ids, use_cache=False).logits[0, :-1].float()
            total = total + cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
            count += int((labels != -100).sum())
        (total / count).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(total.detach()) / count)
    return losses


def logged(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    for (name, mine), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
def test_accumulated_steps_equal_a_loop_by_hand(smoothing: float, kind: str, build: Build, tmp_path: Path) -> None:
    data, found, expected = rows(8), build(kind), build(kind)
    trainer = train(found, data, tmp_path, gradient_accumulation_steps=2, max_steps=2, label_smoothing_factor=smoothing)
    losses = descend(expected, [data[:4], data[4:]], smoothing)
    assert_same(found, expected)
    assert logged(trainer) == pytest.approx(losses, rel=1e-3)


def test_checkpointed_activations_change_nothing(kind: str, build: Build, tmp_path: Path) -> None:
    data, found, expected = rows(4), build(kind), build(kind)
    # the name since transformers 5.20; the older one warns there
    new = "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    train(found, data, tmp_path, max_steps=2, **{f"{'activation' if new else 'gradient'}_checkpointing": True})
    descend(expected, [data[:2], data[2:]])
    assert_same(found, expected)


def test_rows_packed_without_padding_equal_rows_alone(kind: str, build: Build, tmp_path: Path) -> None:
    data, found, expected = rows(8), build(kind), build(kind)
    collate = DataCollatorWithFlattening(return_position_ids=True)
    batch = collate(data[:2])
    assert batch["input_ids"].shape[0] == 1
    assert "attention_mask" not in batch
    train(found, data, tmp_path, collate=collate, gradient_accumulation_steps=2, max_steps=2)
    descend(expected, [data[:4], data[4:]])
    assert_same(found, expected)


def test_a_run_goes_on_from_its_checkpoint(build: Build, tmp_path: Path) -> None:
    data, through, again = rows(8), build(), build()
    train(through, data, tmp_path / "through", max_steps=4)
    options = {"save_strategy": "steps", "save_steps": 2}
    train(build(), data, tmp_path / "again", max_steps=2, **options)
    train(again, data, tmp_path / "again", resume=True, max_steps=4, **options)
    assert_same(again, through)


def test_a_classifier_s_accumulated_steps_equal_a_loop_by_hand(kind: str, build: Build, tmp_path: Path) -> None:
    # Trainer trusts a forward that takes any argument to divide by the accumulated batch, unless the class says no
    data = [{**row, "labels": place % 3} for place, row in enumerate(rows(8))]

    def collate(batch: Rows) -> dict[str, torch.Tensor]:
        inputs = padded([{**row, "labels": row["input_ids"]} for row in batch])
        return {**inputs, "labels": torch.tensor([row["labels"] for row in batch])}

    options = {"model_class": MesaForSequenceClassification, "num_labels": 3}
    found, expected = build(kind, **options), build(kind, **options)
    train(found, data, tmp_path, collate=collate, gradient_accumulation_steps=2, max_steps=2)
    optimiser = torch.optim.SGD(expected.parameters(), RATE)
    for group in (data[:4], data[4:]):
        logits = torch.cat([expected(torch.tensor([row["input_ids"]])).logits for row in group])
        cross_entropy(logits, torch.tensor([row["labels"] for row in group])).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert_same(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_size": 3, "attention_bias": True, "mlp_bias": True, "qk_norm": True, "tie_word_embeddings": False},
        {"ridge_per_channel": False, "gates": False, "num_key_value_heads": 1, "dpfp": 2},
        {"model_class": MesaForSequenceClassification, "num_labels": 3},
    ],
    ids=["default", "more", "fewer", "classifier"],
)
def test_trainer_decays_what_our_loop_decays(options: dict, kind: str, build: Build, tmp_path: Path) -> None:
    model = build(kind, **options)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", weight_decay=0.1)
    optimiser = Trainer(model=model, args=arguments).create_optimizer()

    def decayed(groups: list[dict[str, Any]]) -> set[str]:
        found = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
        return {name for name, parameter in model.named_parameters() if id(parameter) in found}

    names = decayed(optimiser.param_groups)
    assert names == decayed(parameter_groups(model, 0.1, decay_embeddings=True))
    assert names >= {f"model.layers.{layer}.mixer.q_proj.weight" for layer in (0, 1)}
    assert not [name for name in names if "ridge" in name or "norm" in name or "bias" in name]

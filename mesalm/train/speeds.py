"""How fast this machine trains: as an earlier run of the same shape did, or as a few steps made now."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from mesalm.data.stream import Position, RowStream
from mesalm.journal import read_journal
from mesalm.train.hardware import Rate
from mesalm.train.launch import make_accelerator
from mesalm.train.optim import build_optimiser
from mesalm.train.randomness import seed_everything
from mesalm.train.recipe import Recipe
from mesalm.train.step import backward, clip_gradient, moved

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
    journals = sorted(recipe.folder.parent.glob("*/journal.jsonl"), key=_changed)
    for path in reversed(journals):
        try:
            events = read_journal(path)
        except (ValueError, OSError):
            continue  # of another run, which is not asked to be whole, nor to be there still
        start = next((event for event in reversed(events) if event["event"] == "start" and "recipe" in event), None)
        steps = [event for event in events if event["event"] == "step"]
        if start is None or not steps or (_hardware(start["device"]), start["world"]) != (_hardware(device), world):
            continue
        if _shape(start["recipe"]) == _shape(recipe.plain()):
            speed = statistics.median(event["tokens_per_second"] for event in steps[len(steps) // 2 :])
            return Rate(speed, steps[-1].get("solver_steps"), f"as {path.parent}")
    return None


def _changed(path: Path) -> float:
    """Return when a file was last written, 0 where it is there no more."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _hardware(device: str) -> str:
    return device.partition(": ")[2]


def _shape(recipe: Mapping[str, Any]) -> Any:
    """Return what of a recipe's plain data decides its speed."""
    train, data = recipe.get("train", {}), recipe.get("data", {})
    bf16 = train.get("precision") == "bf16"  # a run records what auto became
    return (
        recipe.get("model"),
        [data.get(key) for key in ("vocab_size", "tokenizer", "sequence_length")],
        recipe.get("optim", {}).get("name"),
        [train.get(key) for key in SHAPE],
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
        rows = [{"input_ids": row, "segments": np.zeros(length, np.int64)} for row in ids]
    stream = RowStream(rows, Position(recipe.seed), count, micro_rows=recipe.train.micro_rows or count)
    batches, times = iter(stream), [time.perf_counter()]
    while len(times) < 3 or times[-1] - times[1] < seconds:  # the first step is a warm-up
        micro = [moved(next(batches), accelerator.device) for _ in range(stream.micro_batches)]
        backward(accelerator, model, micro, None).item()
        clip_gradient(accelerator, model, recipe.train.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
    speed = count * length / statistics.median(np.diff(times[1:]))
    steps = getattr(model, "solver_steps", lambda: None)()
    return Rate(float(speed), steps, f"as {len(times) - 2} steps measured now")

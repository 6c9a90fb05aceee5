"""Any recipe made small enough for a minute of one CPU core, all else left as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch

from mesalm.data.corpora import SOURCES
from mesalm.data.documents import Faults
from mesalm.data.source_settings import SourceSettings
from mesalm.journal import read_journal
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.runs import RunFiles
from mesalm.train.overrides import apply_overrides
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

STEPS, ROWS, LENGTH, HEAD, DOCUMENTS = 20, 2, 128, 16, 30
"""Steps of a smoke run, rows of a step, tokens of a row, head size, and documents of the text."""


def smoke(recipe: Recipe, folder: Path) -> str:
    """Train a shrunk recipe under ``folder`` through the code of any run; say in one line how it went.

    Raises what `pretrain` raises.
    """
    small = shrunk(recipe, write_documents(folder / "text", len(recipe.data.sources)), folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only wait for one another
    try:
        run = pretrain(small, quiet=True)
    finally:
        torch.set_num_threads(threads)
    steps = [event for event in read_journal(RunFiles(run).journal) if event["event"] == "step"]
    solver = "" if steps[-1]["solver_steps"] is None else f", {steps[-1]['solver_steps']:.1f} solver steps"
    return (
        f"{recipe.name}: {STEPS} steps, loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}, "
        f"{steps[-1]['seconds']:.1f} s{solver}"
    )


def write_documents(folder: Path, sources: int) -> Path:
    """Write a dataset's folder for each of some sources, with documents of its own from the standard library."""
    source = SOURCES["python-stdlib"](SourceSettings(name="python-stdlib", limit=DOCUMENTS * sources))
    documents = [{"id": document.id, "text": document.text} for document in source.documents(Faults())]
    for number in range(sources):
        (folder / str(number)).mkdir(parents=True)
        datasets.Dataset.from_list(documents[number::sources]).to_parquet(folder / str(number) / "train.parquet")
    return folder


def shrunk(recipe: Recipe, text: Path, folder: Path) -> Recipe:
    """Return the recipe with a small model, few steps and local text; its run and its data lie under ``folder``."""
    plain = recipe.plain()
    train, schedule, limit = recipe.train, recipe.schedule, None if recipe.data.stream else DOCUMENTS
    rows = 2 * ROWS if train.ramp_tokens else ROWS  # a ramp needs quarters
    changes: dict[str, Any] = {
        "output_dir": str(folder / "runs"),
        "init_from": None,
        "branch_from": None,
        "track": [],
        "upload": {},
        "arms": {},
        "data.prepared": None,
        "data.sources": [
            _local(source, text / str(number), limit) for number, source in enumerate(plain["data"]["sources"])
        ],
        "data.stream_sample": DOCUMENTS,
        "data.tokenizer": "train",
        "data.vocab_size": 512,
        "data.sequence_length": LENGTH,
        "data.valid_fraction": 0.1,
        "data.test_fraction": 0.05,
        "data.processes": 1,
        "data.cache_dir": str(folder / "data"),
        "model": small_model(recipe.model),
        "schedule.warmup_steps": min(schedule.warmup_steps or 2, 2),
        "schedule.decay_steps": None if schedule.decay_steps is None else min(schedule.decay_steps, STEPS // 4),
        "schedule.decay_fraction": min(schedule.decay_fraction, 0.9),
        "train.steps": STEPS,
        "train.batch_rows": rows,
        "train.ramp_tokens": min(train.ramp_tokens, STEPS // 4 * rows * LENGTH),
        "train.micro_rows": None if train.micro_rows is None else ROWS // 2,
        "train.device": "cpu",
        "train.compile": False,
        "train.workers": 0,
        "train.log_every": STEPS // 4,
        "parallelism": {},
        "validate": {"every": STEPS // 2, "rows": ROWS},
        "sample.every": STEPS if recipe.sample.every else 0,
        "sample.tokens": 4,
        "evaluate": {},
        "checkpoint": {"every": STEPS // 2, "keep": 1},
    }
    apply_overrides(plain, changes.items(), Recipe)
    return Recipe.build(plain)


def small_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model of two blocks, or one of each mixer, with the same ratios of heads and widths."""
    config = MesaConfig(**copy.deepcopy({**model, "vocab_size": 512}))
    kinds = list(dict.fromkeys(config.layer_mixers))
    heads, groups, size = config.head_shape
    readers = heads // groups
    small = min(heads, 2 * readers)
    width = round(small * HEAD * config.hidden_size / (heads * size))
    return {
        **{key: value for key, value in model.items() if key not in ("vocab_size", "max_position_embeddings")},
        "num_hidden_layers": max(2, len(kinds)),
        "mixers": kinds,
        "num_attention_heads": small,
        "num_key_value_heads": small // readers,
        "head_dim": HEAD,
        "hidden_size": width,
        "intermediate_size": math.ceil(width * config.intermediate_size / config.hidden_size),
    }


def _local(source: Mapping[str, Any], text: Path, limit: int | None) -> dict[str, Any]:
    """Return a source of documents that reads the local text; those that make their own text make less of it."""
    kept = {**source, "limit": limit, "ids_column": None, "text_column": "text", "id_column": "id"}
    match source["name"]:
        case "hub":
            return {**kept, "dataset": str(text), "subset": None, "revision": None, "split": "train", "files": []}
        case "files" | "packages" | "python-stdlib":
            return {**kept, "name": "files", "files": str(text / "*.parquet"), "packages": []}
        case _:
            return kept

"""Resolve a MODEL argument, and find the length the model was trained on.

A model is a training run, a model folder, or a name on the Hub. No weights are loaded here; `scoring.py` is the only
file that runs a model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesalm.hub.open_model import prefix_length
from mesalm.pretrained import load
from mesalm.runs import STATE_FILE, resolve

LENGTH_WHEN_UNKNOWN = 1024


@dataclass(frozen=True)
class ModelSource:
    """The location of a model and what its run recorded about it."""

    argument: str
    name: str
    load_from: str
    sequence_length: int | None = None
    tokens_trained: int | None = None
    seconds_trained: float | None = None
    prepared: Path | None = None
    training: dict[str, list[list[float]]] = field(default_factory=dict)
    seed: int | None = None
    recipe: str = ""


def find_model(argument: str) -> ModelSource:
    """Resolve a MODEL argument: a run folder stands for its `final/`, never silently for a checkpoint.

    Raises ValueError in one line for a missing folder, a run that is not finished, or a folder that holds
    no model (see `mesalm.runs.resolve`).
    """
    found = resolve(argument)
    if found.run is None:
        return ModelSource(argument, found.name, found.load_from)
    run = found.finished_run
    if run is None:  # a checkpoint has the run's rows and text, but not the figures at the end of its journal
        rows, text = found.run.sequence_length, found.run.prepared
        state = Path(found.load_from) / STATE_FILE
        tokens = json.loads(state.read_text(encoding="utf-8"))["tally"]["tokens"] if state.is_file() else None
        return ModelSource(
            argument, found.name, found.load_from, sequence_length=rows, tokens_trained=tokens, prepared=text
        )
    recipe, events = run.settings, run.events
    ends = [event for event in events if event["event"] in ("step", "end") and "tokens" in event]
    return ModelSource(
        argument,
        found.name,
        found.load_from,
        sequence_length=run.sequence_length,
        tokens_trained=max((int(event["tokens"]) for event in ends), default=None),
        seconds_trained=next((float(event["seconds"]) for event in reversed(ends) if event.get("seconds")), None),
        prepared=run.prepared,
        training=training_curve(events),
        seed=recipe.get("seed"),
        recipe=recipe_fingerprint(recipe, run.start.get("data")),
    )


def recipe_fingerprint(recipe: dict[str, Any], data: Any) -> str:
    """Return the sha256 of a resolved recipe without name, seed and output folder, and of the data; "" without one."""
    if not recipe:
        return ""
    kept = {key: value for key, value in recipe.items() if key not in ("name", "seed", "output_dir")}
    return hashlib.sha256(json.dumps([kept, data], sort_keys=True, default=str).encode()).hexdigest()


def training_curve(events: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Return `{"loss": [[tokens, nats per token]...], "valid": [[tokens, bits per byte]...]}` of a journal."""
    curve: dict[str, list[list[float]]] = {"loss": [], "valid": []}
    for event in events:
        tokens = event.get("tokens")
        if tokens is None:
            continue
        if event.get("event") == "step" and event.get("loss") is not None:
            curve["loss"].append([float(tokens), float(event["loss"])])
        if event.get("event") == "valid" and event.get("bits_per_byte") is not None:
            curve["valid"].append([float(tokens), float(event["bits_per_byte"])])
    return {key: points for key, points in curve.items() if points}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a sha256 of vocabulary and rules, equal for tokenizers that encode plain text identically."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for beside in ("padding", "truncation", "post_processor"):
            rules.pop(beside, None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    rules["start"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def training_length(source: ModelSource, tokenizer: Any, trust_remote_code: bool = False) -> int:
    """Return how many tokens a model was trained to read at once, without loading its weights.

    It is taken from the run's recipe, else the configuration, else the tokenizer, else it is 1024; the vectors of a
    soft prefix are taken off. Raises ValueError with one line if the configuration cannot be read.
    """
    if source.sequence_length:
        return source.sequence_length
    declared = declared_length(_read_configuration(source, trust_remote_code), tokenizer)
    return max(1, declared - prefix_length(Path(source.load_from)))


def declared_vocabulary(source: ModelSource, tokenizer: Any, trust_remote_code: bool = False) -> int:
    """Return the rows of a model's output layer, without loading its weights; errors as `training_length`."""
    configuration = _read_configuration(source, trust_remote_code)
    return int(getattr(configuration, "vocab_size", None) or len(tokenizer))


def _read_configuration(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return load(AutoConfig, source.load_from, "model", name=source.argument, trust_remote_code=trust_remote_code)


def declared_length(config: Any, tokenizer: Any) -> int:
    """Return the length that a configuration or a tokenizer declares, 1024 where neither does."""
    configured = configured_length(config)
    if configured is not None:
        return configured
    declared = getattr(tokenizer, "model_max_length", None)
    return int(declared) if isinstance(declared, int) and 1 < declared < 10**6 else LENGTH_WHEN_UNKNOWN


def configured_length(config: Any) -> int | None:
    """Return the length that a configuration declares, or None."""
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


def one_line(error: BaseException) -> str:
    """Return an error's words on one line."""
    return " ".join(str(error).split())[:300]

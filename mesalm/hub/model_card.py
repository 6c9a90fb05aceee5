"""The model card, made from what the run wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from mesalm.journal import read_journal

CARD = """---
{front}
---

# {name}

A causal language model of {parameters:,} parameters with {mixers} sequence mixers, trained with mesalm.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

The code that `trust_remote_code` runs lies in this folder and needs torch and transformers only.

## Architecture

{architecture}

## Training

{training}

## Limits

This is a small model for research on in-context learning. It knows its training text and little else, was not
taught to follow instructions, and was not filtered for what it may say.
"""


def model_card(model: PreTrainedModel, name: str, run: Path | None) -> str:
    """Return the text of README.md for a published mesa model.

    Args:
        model: the model; its configuration and size are described.
        name: the folder's name, used in the loading example.
        run: the run folder whose journal tells of data, tokens and loss; None: the card says that it is not known.
    """
    config = model.config
    mixers = config.layer_mixers
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mesa", "mesalm", *sorted(set(mixers))],
    )
    architecture = [
        f"- layers: {config.num_hidden_layers} ({', '.join(mixers)})",
        f"- width {config.hidden_size}, MLP {config.intermediate_size}, {config.num_attention_heads} heads of "
        f"{config.head_dim} ({config.num_key_value_heads} for keys and values)",
        f"- vocabulary {config.vocab_size}, trained on sequences of up to {config.max_position_embeddings} tokens",
    ]
    return CARD.format(
        front=card_data.to_yaml(),
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mixers=" and ".join(sorted(set(mixers))),
        architecture="\n".join(architecture),
        training=_training(run),
    )


def _training(run: Path | None) -> str:
    if run is None:
        return "No training journal lies with these weights; data, tokens and loss are not known."
    events: dict[str, dict[str, Any]] = {}
    for event in read_journal(run / "journal.jsonl"):
        events[event["event"]] = event  # the last of each kind
    rows = []
    if start := events.get("start"):
        sources = start["recipe"]["data"]["sources"]
        rows.append(f"- data: {'; '.join(_describe(source) for source in sources)}")
        rows.append(f"- seed {start['recipe']['seed']}, versions {json.dumps(start['versions'])}")
    if end := events.get("end"):
        rows.append(f"- {end['tokens']:,} tokens in {end['step']:,} steps; training loss at the end {end['loss']:.4f}")
    if valid := events.get("valid"):
        bits = valid.get("bits_per_byte")
        rows.append(
            f"- held-out loss {valid['loss']:.4f} nats a token"
            + (f", {bits:.4f} bits a byte" if bits is not None else "")
            + f" after {valid['tokens']:,} tokens"
        )
    rows.append("- licence: that of the training text; see the sources above")
    return "\n".join(rows)


def _describe(source: dict[str, Any]) -> str:
    place = source.get("dataset") or source.get("files")
    if isinstance(place, list):
        place = ", ".join(Path(item).name for item in place)
    elif place and source.get("files"):
        place = Path(place).name
    return f"{source['name']} ({place})" if place else str(source["name"])

"""Model cards, generated from the records of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from mesalm.hub.training_record import training_lines
from mesalm.markdown import plain

CARD = """---
{front}
---

# {name}

A {kind} of {parameters:,} parameters with {mixers} sequence mixers, made with mesalm.

## Load it

```python
{example}
```

The code that `trust_remote_code` runs is in this folder and needs torch and transformers only. With mesalm installed,
`import mesalm` first: its own classes then open the folder, and `trust_remote_code` is not needed.

## Architecture

{architecture}

## Training

{training}

## Evaluation

{evaluation}

## Limits

This is a small model for research on in-context learning. It knows its training text and little else, was not
taught to follow instructions, and was not filtered for what it may say.
"""

GENERATE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({place}, trust_remote_code=True)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))"""

CLASSIFY = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place}, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained({place}, trust_remote_code=True)
inputs = tokenizer("Once", return_tensors="pt")
print(model.config.id2label[int(model(**inputs).logits.argmax())])"""

NO_EVALUATION = "No results were recorded except the held-out loss above, if any."


@dataclass(frozen=True)
class Evaluation:
    """One measured value for the card: the measure, its value, and the ends of its 95 % interval, if any."""

    section: str
    label: str
    unit: str
    value: float
    low: float | None
    high: float | None
    digits: int = 3


def model_card(
    model: PreTrainedModel,
    name: str,
    run: Path | None,
    *,
    place: str | None = None,
    licence: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    conversion: dict[str, Any] | None = None,
) -> str:
    """Return the text of README.md for a published mesa model.

    Args:
        model: the model; its configuration and size are described.
        name: the title.
        run: the run folder whose journal records data, tokens and loss. None: the card states that they are unknown.
        place: the folder or Hub name in the loading example. None: `name`.
        licence: the Hub's name for the weights' licence, for instance "apache-2.0". None: the card states that it is
            unspecified and depends on the training text.
        evaluations: measured values.
        conversion: the content of `conversion.json`, if the model was converted.
    """
    config = model.config
    mixers = config.layer_mixers
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    source = (conversion or {}).get("source")
    # the Hub's list shows only scores that are comparable across models; losses by position etc. go into the table
    results = [_result(item) for item in evaluations if item.section == "text" or item.section.startswith("task/")]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if classifies else "text-generation",
        license=licence,
        base_model=source if source and "/" in source else None,
        tags=["mesa", "mesalm", *sorted(set(mixers))],
        model_name=name if results else None,
        eval_results=results or None,
    )
    architecture = [
        f"- layers: {config.num_hidden_layers} ({', '.join(mixers)})",
        f"- width {config.hidden_size}, MLP {config.intermediate_size}, {config.num_attention_heads} heads of "
        f"{config.head_dim} ({config.num_key_value_heads} for keys and values)",
        f"- vocabulary {config.vocab_size}, meant for sequences of up to {config.max_position_embeddings} tokens",
    ]
    training = [*conversion_lines(conversion), *training_lines(run)]
    training.append(
        f"- licence of the weights: {plain(licence or 'not stated; the licence of the training text applies')}"
    )
    return CARD.format(
        front=card_data.to_yaml(),
        name=plain(name),
        kind="text classifier" if classifies else "causal language model",
        example=(CLASSIFY if classifies else GENERATE).format(place=json.dumps(place or name, ensure_ascii=False)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mixers=" and ".join(sorted(set(mixers))),
        architecture="\n".join(architecture),
        training="\n".join(training),
        evaluation=_table(evaluations) if evaluations else NO_EVALUATION,
    )


def conversion_lines(conversion: dict[str, Any] | None) -> list[str]:
    """Return the lines of the card that describe how a converted model was made."""
    if conversion is None:
        return []
    text = conversion.get("calibration", {})
    names = ", ".join(file["name"] for file in text.get("files", [])) or text.get("name", "nothing")
    source, layers = plain(conversion["source"]), ", ".join(map(str, conversion["layers"]))
    if not layers:
        return [f"- converted from {source}: weights renamed, no layer replaced"]
    return [
        f"- converted from {source}: {conversion['mixer']} instead of softmax in layers "
        f"{layers}, fitted to {conversion.get('tokens', 0):,} tokens of {plain(names)}"
    ]


def read_conversion(folder: Path) -> dict[str, Any] | None:
    """Return the content of `conversion.json` in a folder, or None if there is no such file."""
    path = folder / "conversion.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _result(item: Evaluation) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=item.section.replace("/", "-"),
        dataset_name=item.section,
        metric_type=item.label,
        metric_value=round(item.value, item.digits),
    )


def _table(evaluations: Sequence[Evaluation]) -> str:
    rows = ["| | measure | value | 95 % interval |", "|---|---|---|---|"]
    for item in evaluations:
        value = f"{item.value:.{item.digits}f}"
        bounded = item.low is not None and item.high is not None
        interval = f"{item.low:.{item.digits}f} to {item.high:.{item.digits}f}" if bounded else ""
        rows.append(f"| {plain(item.section)} | {plain(item.label)}, {plain(item.unit)} | {value} | {interval} |")
    return "\n".join([*rows, "", "Measured by `mesalm eval`."])

"""A soft prefix: learned vectors that a frozen language model reads before every sequence of a task.

This is prompt tuning (Lester et al. 2021, arXiv 2104.08691); von Oswald et al. 2023 (arXiv 2309.05858, section 6) tune
a prefix to improve in-context learning. It works with any causal language model of transformers, whatever its mixers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mesalm.files import readable, write_text
from mesalm.model.cache_mesa import CACHE, cache_name, one_cache

VECTORS_FILE = "prefix.safetensors"
RECORD_FILE = "prefix.json"


class PrefixedModel(nn.Module):
    """A language model that reads ``prefix`` [n, hidden] before the tokens; only the prefix can be trained.

    It has the interface of the language model: token ids in, logits of the same positions out. A call with a cache
    continues a sequence, whose prefix was read with its first tokens.
    """

    def __init__(self, model: nn.Module, prefix: torch.Tensor):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.prefix = nn.Parameter(prefix.detach().clone().float())
        # weight decay would pull the vectors away from embeddings; torch's type does not declare this attribute
        self.prefix._no_weight_decay = True  # type: ignore[attr-defined]

    @property
    def config(self) -> Any:
        """Return the language model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Return the device of the model and the prefix."""
        return self.prefix.device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that the frozen model applies no dropout."""
        return super().train(False)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        logits_to_keep: int = 0,
        past_key_values: Any = None,
    ) -> Any:
        """Return the language model's output for ids [B, T]: logits [B, T or logits_to_keep, V], loss, cache."""
        cache = one_cache(cache, past_key_values)
        embeddings = self.model.get_input_embeddings()(input_ids)
        count = len(self.prefix) if cache is None else 0
        if count:
            before = self.prefix.to(embeddings.dtype).expand(len(input_ids), -1, -1)
            embeddings = torch.cat((before, embeddings), dim=1)
            if labels is not None:
                labels = torch.cat((labels.new_full((len(labels), count), -100), labels), dim=1)
        given = {} if cache is None else {cache_name(self.model) or CACHE: cache}
        output = self.model(
            inputs_embeds=embeddings,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **given,
        )
        if count and not logits_to_keep:
            output.logits = output.logits[:, count:]
        return output

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return the ids [B, T] followed by the generated tokens, like transformers' ``generate``."""
        embeddings = self.model.get_input_embeddings()(input_ids)
        before = self.prefix.to(embeddings.dtype).expand(len(input_ids), -1, -1)
        mask = torch.cat((attention_mask.new_ones(len(input_ids), len(self.prefix)), attention_mask), dim=1)
        written = self.model.generate(
            inputs_embeds=torch.cat((before, embeddings), dim=1), attention_mask=mask, **options
        )
        return torch.cat((input_ids, written), dim=1)


def embedding_digest(model: Any) -> str:
    """Return the sha256 of the input embeddings, which identifies a trained model."""
    weight = model.get_input_embeddings().weight.detach().cpu().float().contiguous()
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()


def save_prefix(prefixed: PrefixedModel, folder: Path, record: dict[str, Any]) -> None:
    """Write the vectors, the model's configuration and ``record`` (``base``: the model's place) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"prefix": prefixed.prefix.detach().cpu().contiguous()}, folder / VECTORS_FILE)
    readable(folder / VECTORS_FILE)
    prefixed.config.save_pretrained(folder)
    content = {**record, "vectors": len(prefixed.prefix), "embedding_sha256": embedding_digest(prefixed.model)}
    # last, since it marks the folder as complete
    write_text(folder / RECORD_FILE, json.dumps(content, indent=1))


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record written by `save_prefix`; None for a folder without a prefix."""
    path = folder / RECORD_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def load_prefix(model: nn.Module, folder: Path) -> PrefixedModel:
    """Wrap a model with the prefix in a folder; ValueError if it was tuned for other weights."""
    record = read_record(folder)
    if record is None:
        raise ValueError(f"{folder}: contains no {RECORD_FILE}; tune a prefix first")
    if embedding_digest(model) != record["embedding_sha256"]:
        raise ValueError(
            f"{folder}: the weights of {record['base']} have changed since the prefix was tuned; tune again"
        )
    return PrefixedModel(model, load_file(folder / VECTORS_FILE)["prefix"])


__all__ = ["PrefixedModel", "load_prefix", "read_record", "save_prefix"]

"""Texts sampled from a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mesalm.train.randomness import seed_everything
from mesalm.train.sections import SampleSettings
from mesalm.train.sharded import is_sharded


def sampling(
    tokenizer: PreTrainedTokenizerBase, settings: SampleSettings, seed: int, *, main_process: bool
) -> Callable[[nn.Module, int], Iterable[dict[str, Any]]]:
    """Return what `Probe` runs: a line with prompt and text for each prompt, on the main process only.

    All processes sample from a sharded model, and all get the same texts.

    The samples of a step depend on the weights, the seed and the step alone.
    """

    def run(model: nn.Module, step: int) -> Iterator[dict[str, Any]]:
        if not main_process and not is_sharded(model):
            return
        for number, prompt in enumerate(settings.prompts):
            seed_everything(seed + 1_000_003 * step + number)
            text = continuation(model, tokenizer, prompt, settings.tokens, settings.temperature)
            yield {"prompt": prompt, "text": text}

    return run


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Return the ids of a prompt, int64 [1, T], begun by the token that begins each document."""
    ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    if not ids:
        raise ValueError("prompt: must not be empty for a tokenizer without a token that begins a text")
    return torch.tensor([ids])


def continuation(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int, temperature: float) -> str:
    """Return the text that the model puts after a prompt, up to ``tokens`` tokens; temperature 0 is greedy."""
    ids = prompt_ids(tokenizer, prompt).to(next(model.parameters()).device)
    options = _generation(tokenizer, ids, tokens, temperature)
    made = model.generate(ids, synced_gpus=is_sharded(model), **options)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def _generation(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, tokens: int, temperature: float
) -> dict[str, Any]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": tokens,
        "pad_token_id": pad,
        "do_sample": temperature > 0,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0}
    return options

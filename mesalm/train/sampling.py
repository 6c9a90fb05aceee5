"""Texts sampled from a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mesalm.data.bpe import prompt_ids
from mesalm.settings import SettingsError
from mesalm.train.randomness import seed_everything
from mesalm.train.sections import SampleSettings
from mesalm.train.sharded import is_sharded


def sampling(
    tokenizer: PreTrainedTokenizerBase, settings: SampleSettings, seed: int, *, main_process: bool
) -> Callable[[nn.Module, int], Iterable[dict[str, Any]]]:
    """Return what `Probe` runs: a line with prompt and text for each prompt, on the main process only.

    All processes sample from a sharded model, and all get the same texts.

    The samples of a step depend on the weights, the seed and the step alone. Raises SettingsError for a prompt without
    a token.
    """
    for prompt in settings.prompts:
        try:
            prompt_ids(tokenizer, prompt)
        except ValueError as error:
            raise SettingsError(str(error).replace("prompt:", "sample.prompts:", 1)) from None

    def run(model: nn.Module, step: int) -> Iterator[dict[str, Any]]:
        if not main_process and not is_sharded(model):
            return
        for number, prompt in enumerate(settings.prompts):
            seed_everything(seed + 1_000_003 * step + number)
            text = continuation(model, tokenizer, prompt, settings.tokens, settings.temperature)
            yield {"prompt": prompt, "text": text}

    return run


def continuation(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int, temperature: float) -> str:
    """Return the text that the model puts after a prompt, up to ``tokens`` tokens; temperature 0 is greedy."""
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=next(model.parameters()).device)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        synced_gpus=is_sharded(model),
        **choice,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

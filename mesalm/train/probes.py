"""Validation and sampling during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from mesalm.data.bpe import prompt_ids
from mesalm.data.stream import epoch_batches
from mesalm.model.operator_inputs import unchecked_values
from mesalm.settings import SettingsError
from mesalm.train.randomness import seed_everything
from mesalm.train.sections import SampleSettings
from mesalm.train.sharded import is_sharded
from mesalm.train.step import moved


def validation(
    rows: Any, micro_rows: int, bytes_per_token: float | None, accelerator: Accelerator, share: tuple[int, int]
) -> Callable[[nn.Module, int], Iterable[dict[str, Any]]]:
    """Return a function for `Probe` that yields one line with loss and, if bytes are known, bits_per_byte.

    The loss is the mean over all rows in nats per token; each row is scored by one share of the processes
    (`data_share`). All rows must have the same length, so that they have equal weight.
    """

    def run(model: nn.Module, step: int) -> Iterable[dict[str, Any]]:
        total = torch.zeros(2, device=accelerator.device)
        left = math.ceil(math.ceil(len(rows) / share[1]) / micro_rows)
        for batch in epoch_batches(rows, micro_rows, *share):
            count = len(batch["input_ids"])
            with unchecked_values():  # if the run diverges, report a non-finite loss instead of raising
                loss = model(**moved(batch, accelerator.device)).loss.float()
            total += torch.stack([loss * count, total.new_tensor(float(count))])
            left -= 1
        if is_sharded(model):  # all processes must run it equally often
            for batch in islice(epoch_batches(rows, 1), left):
                model(**moved(batch, accelerator.device))
        total = accelerator.reduce(total, "sum")
        fields = {"loss": float(total[0] / total[1])}
        if bytes_per_token is not None:
            fields["bits_per_byte"] = fields["loss"] / math.log(2) / bytes_per_token
        return [fields]

    return run


def sampling(
    tokenizer: PreTrainedTokenizerBase, settings: SampleSettings, seed: int, *, main_process: bool
) -> Callable[[nn.Module, int], Iterable[dict[str, Any]]]:
    """Return a function for `Probe` that yields a line with prompt and text per prompt, on the main process only.

    All processes sample from a sharded model, and all get the same texts.

    The samples of a step depend only on the weights, the seed and the step. Raises SettingsError for a prompt without
    tokens.
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
    """Return the model's continuation of a prompt by up to ``tokens`` tokens; temperature 0 is greedy."""
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

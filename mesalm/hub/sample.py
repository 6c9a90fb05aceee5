"""Continue a prompt, printing the text as it is generated."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TextStreamer, set_seed

from mesalm.data.bpe import prompt_ids
from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.settings import LEAST_TEMPERATURE


def sample(
    model: str,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> str:
    """Print and return a continuation of the prompt.

    Args:
        model: a run folder, a saved model's folder or a Hub name.
        prompt: the text to continue; it may be empty.
        tokens: maximum number of new tokens.
        temperature: sampling temperature; 0 decodes greedily.
        top_p: probability mass for nucleus sampling.
        seed: random seed for sampling.

    Raises:
        ValueError: the model or its tokenizer cannot be opened, or an argument is out of range.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"prompt: {prompt!r} is not UTF-8; give text, or set the locale to a UTF-8 one") from None
    if tokens < 1:
        raise ValueError(f"tokens: {tokens} must be at least 1")
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature: {temperature} must be 0 (greedy) or at least {LEAST_TEMPERATURE}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top-p: {top_p} must be above 0 and at most 1")
    tokenizer = open_tokenizer(model, trust_remote_code=trust_remote_code)
    opened: Any = open_model(model, device=device, trust_remote_code=trust_remote_code)
    ids = prompt_ids(tokenizer, prompt)
    set_seed(seed)
    # by default transformers samples only from the 50 most likely tokens
    how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    choice = how if temperature else {"do_sample": False}
    inputs = torch.tensor([ids], device=opened.device)
    with torch.inference_mode():
        output = opened.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=TextStreamer(tokenizer, skip_special_tokens=True),
            **choice,
        )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))

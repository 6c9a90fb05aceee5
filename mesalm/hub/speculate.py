"""Speculative decoding for recurrent models: a draft is verified in one pass, and a rejected draft leaves no trace.

A recurrent state cannot be rolled back, so each draft is read into a copy of the cache. If the whole draft is accepted,
the copy replaces the cache; otherwise the old cache stays, and the next pass rereads the accepted tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation import PromptLookupCandidateGenerator

from mesalm.model.cache_mesa import CACHE, cache_name, returned_cache

Draft = Callable[[Tensor], Tensor]
"""Function that proposes the next tokens [D], D at least 0, for ids [1, T]."""

BEHIND = 48
"""Number of tokens to reread from which drafting pauses; a pass over 64 tokens costs about as much as over a few."""


def prompt_lookup(tokens: int = 10, ngram: int = 3) -> Draft:
    """Propose the tokens that followed an earlier occurrence of the last ones: transformers' prompt lookup."""
    found: Any = PromptLookupCandidateGenerator(
        num_output_tokens=tokens, max_matching_ngram_size=ngram, max_length=torch.iinfo(torch.int64).max
    )
    return lambda ids: found.get_candidates(ids)[0][0, ids.shape[1] :]


def draft_model(assistant: Any, tokens: int = 5) -> Draft:
    """Propose a smaller model's most likely tokens; it must share the vocabulary and serves one sequence at a time."""
    read = _Reader(assistant)

    @torch.no_grad()
    def propose(ids: Tensor) -> Tensor:
        read.back_to(ids)
        logits = read(ids[:, read.seen :], keep=1)
        trial, drafted = copy.deepcopy(read), [logits[0, -1:].argmax(-1)]
        while len(drafted) < tokens:
            drafted.append(trial(drafted[-1].view(1, 1), keep=1)[0, -1:].argmax(-1))
        return torch.cat(drafted)

    return propose


def speculate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    draft: Draft | None = None,
    **inputs: Any,
) -> Tensor:
    """Decode greedily with several draft tokens per pass: `model.generate(ids, custom_generate=speculate)`.

    Args:
        draft: the function that proposes tokens; by default `prompt_lookup()`. `generate` forwards it.

    The other arguments are those that `generate` passes to a decoding method. The result equals token-by-token greedy
    decoding except where logits are so close that rounding decides.

    Raises:
        ValueError: sampling, beams, scores, several rows, padding, embeddings, a cache with tokens, compiling.
    """
    settings, mask, cache = generation_config, inputs.get("attention_mask"), inputs.get(CACHE)
    refusals = {
        "do_sample": settings.do_sample,
        "num_beams": settings.num_beams not in (None, 1),
        "return_dict_in_generate": settings.return_dict_in_generate,
        "use_cache": settings.use_cache is False,
        "input_ids": len(input_ids) != 1,
        "inputs_embeds": inputs.get("inputs_embeds") is not None,
        "attention_mask": mask is not None and not bool(mask.all()),
        CACHE: cache is not None and int(cache.get_seq_length()) > 0,
        "cache_implementation": settings.cache_implementation not in (None, "dynamic"),
    }
    for name in (name for name, refused in refusals.items() if refused):
        raise ValueError(
            f"{name}: not supported by speculative decoding, which is greedy, for one unpadded row; leave it out"
        )
    propose = prompt_lookup() if draft is None else draft
    read = _Reader(model)
    while True:
        waiting = input_ids[:, read.seen :]
        # the prompt is read without a draft, so that no rejection takes it back
        drafts = read.cache is not None and waiting.shape[1] < BEHIND
        drafted = propose(input_ids) if drafts else input_ids.new_empty(0)
        before = copy.deepcopy(read) if len(drafted) else read
        logits = read(torch.cat((waiting, drafted.view(1, -1)), dim=1), keep=len(drafted) + 1)
        for place in range(len(drafted) + 1):
            token = logits_processor(input_ids, logits[:, place].float()).argmax(-1, keepdim=True)
            input_ids = torch.cat((input_ids, token), dim=1)
            if bool(stopping_criteria(input_ids, None).all()):
                return input_ids
            if place < len(drafted) and int(token) != int(drafted[place]):
                read = before
                break


class _Reader:
    """A model with its cache and the ids in it; a copy shares only the model."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache, self.ids = model, None, torch.empty(1, 0, dtype=torch.long)
        self.name = cache_name(model) or CACHE

    @property
    def seen(self) -> int:
        """Return the number of tokens in the cache."""
        return self.ids.shape[1]

    def back_to(self, ids: Tensor) -> None:
        """Reset the cache unless these ids extend those already read."""
        if self.seen >= ids.shape[1] or not torch.equal(ids[:, : self.seen], self.ids.to(ids)):
            self.cache, self.ids = None, ids[:, :0]

    def __call__(self, ids: Tensor, keep: int) -> Tensor:
        """Read ids [1, T] and return the logits [1, keep, vocabulary] of the last."""
        output = self.model(ids, use_cache=True, logits_to_keep=keep, **{self.name: self.cache})
        self.cache, self.ids = returned_cache(output), torch.cat((self.ids.to(ids), ids), dim=1)
        logits: Tensor = output.logits
        return logits

    def __deepcopy__(self, memo: Any) -> _Reader:
        twin = copy.copy(self)
        twin.cache = copy.deepcopy(self.cache)
        return twin

"""Speculative decoding for models with states: a draft is read in one pass, and a refused one leaves nothing behind.

A state cannot be taken back by a token, so each draft is read into a copy of the cache. Where all of it is accepted the
copy stays; else the old cache does, and the tokens since are read again before the next draft.
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
"""What proposes the next tokens [D], D at least 0, of ids [1, T]."""

BEHIND = 48
"""Tokens that may wait to be read again; one pass over a chunk of 64 costs about as much as one over a few."""


def prompt_lookup(tokens: int = 10, ngram: int = 3) -> Draft:
    """Propose what followed the last tokens where they stood before: transformers' prompt lookup."""
    found: Any = PromptLookupCandidateGenerator(
        num_output_tokens=tokens, max_matching_ngram_size=ngram, max_length=torch.iinfo(torch.int64).max
    )
    return lambda ids: found.get_candidates(ids)[0][0, ids.shape[1] :]


def draft_model(assistant: Any, tokens: int = 5) -> Draft:
    """Propose the likeliest tokens by a smaller model of the same vocabulary; it serves one sequence at a time."""
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
    """Decode greedily, as many tokens a pass as a draft foresees: `model.generate(ids, custom_generate=speculate)`.

    Args:
        draft: what proposes tokens; by default `prompt_lookup()`. `generate` hands it on.

    The other arguments are those that `generate` hands to a way of decoding. The ids are those of greedy decoding token
    by token, up to logits so close that rounding decides.

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
        raise ValueError(f"{name}: speculative decoding is greedy, of one whole row from its start; leave it out")
    propose = prompt_lookup() if draft is None else draft
    read = _Reader(model)
    while True:
        waiting = input_ids[:, read.seen :]
        drafted = propose(input_ids) if waiting.shape[1] < BEHIND or read.cache is None else input_ids.new_empty(0)
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
    """A model and the cache of what it has read; a copy shares the model alone."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache, self.ids = model, None, torch.empty(1, 0, dtype=torch.long)
        self.name = cache_name(model) or CACHE

    @property
    def seen(self) -> int:
        """Return the number of tokens in the cache."""
        return self.ids.shape[1]

    def back_to(self, ids: Tensor) -> None:
        """Forget everything where these ids do not go on from what was read."""
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

"""Run a model: the log-probabilities that every measure of this package is made of.

This is the only file that runs a model. Any Hugging Face causal language model with its tokenizer will do;
importing `mesalm` makes the model type "mesa" known to the Auto classes.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.cache_utils import Cache

import mesalm  # noqa: F401  (registers the model type "mesa")
from mesa_eval.batches import Batch, plan_batches, tokens_read
from mesa_eval.model_source import ModelSource, declared_length, find_model, load_tokenizer, one_line
from mesa_eval.processes import Processes
from mesalm.hub.open_model import open_model

LOGITS_PER_BATCH = 2**26  # 256 MiB of float32: a large vocabulary then gets smaller batches


@dataclass(frozen=True)
class Pair:
    """Hold an encoded (context, continuation): `tokens[start:]` is the continuation.

    `joint` is False where encoding context and continuation together did not begin with the tokens of the
    context alone, so that the two were encoded apart.
    """

    tokens: list[int]
    start: int
    joint: bool


class TokenScores(NamedTuple):
    """Hold, for the scored tokens of one row: log P in nats, whether the token was the likeliest, and which was."""

    nats: np.ndarray
    hits: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Likelihood:
    """Hold log P(continuation | context) in nats, whether every token of it was the likeliest one, and those that
    were, each after the right ones before it."""

    nats: float
    greedy: bool
    best: tuple[int, ...] = ()


class Scorer:
    """Score text with one causal language model.

    `model` maps `input_ids` [B, T] to an object with `.logits` [B, T, V]; `tokenizer` is a Hugging Face
    tokenizer. `max_length` is the number of tokens the model was trained to read at once; `start_token` is
    what every document and every prompt begins with: the tokenizer's bos, else its eos, else None.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: ModelSource | None = None,
        max_length: int | None = None,
        device: str = "cpu",
        batch_tokens: int = 8192,
        quiet: bool = False,
        share_prefixes: bool = True,
        processes: Processes | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: {batch_tokens} given; it must be at least 1")
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.source = source or ModelSource("", type(model).__name__, "")
        self.device = device
        self.batch_tokens = batch_tokens
        self.quiet = quiet
        self.processes = processes or Processes()
        self.max_length = (
            max_length or self.source.sequence_length or declared_length(getattr(model, "config", None), tokenizer)
        )
        self.tokens_run = 0
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.start_token: int | None = bos if bos is not None else eos
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos or 0)
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._caches = "use_cache" in accepted
        self._shares = share_prefixes and self._caches and "past_key_values" in accepted
        self.stage = ""  # what a progress bar says before the measure's own name, such as "3/12 "
        self._asked = False
        self._read: tuple[tuple[tuple[int, ...], int], Cache] | None = None

    @classmethod
    def open(
        cls,
        model: str,
        *,
        device: str = "auto",
        batch_tokens: int = 8192,
        trust_remote_code: bool = False,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> Scorer:
        """Load a run folder's `final/`, a model folder or a Hub name, in float32.

        `device` "auto" is CUDA where there is one, else the CPU. Raises ValueError in one line when there is
        no such model, the run is not finished, or the tokenizer is missing.
        """
        source = find_model(model)
        own = (processes or Processes()).device or ("cuda" if torch.cuda.is_available() else "cpu")
        where = own if device == "auto" else device
        tokenizer = load_tokenizer(source, trust_remote_code)
        try:
            loaded = open_model(
                source.load_from, dtype=torch.float32, device=where, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{model}: the model cannot be loaded: {one_line(error)}") from error
        return cls(
            loaded,
            tokenizer,
            source=source,
            device=where,
            batch_tokens=batch_tokens,
            quiet=quiet,
            processes=processes,
        )

    @property
    def name(self) -> str:
        """Return the short name shown in reports."""
        return self.source.name

    @property
    def vocab_size(self) -> int:
        """Return the number of rows of the output layer, or the tokenizer's size where that is unknown."""
        return int(getattr(getattr(self.model, "config", None), "vocab_size", None) or len(self.tokenizer))

    def encode(self, text: str) -> list[int]:
        """Encode text as plain text: no special token is added, and none that is spelled out is read as one."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts at once; see `encode`."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def start(self) -> list[int]:
        """Return the tokens that stand before every document and prompt (none or one)."""
        return [] if self.start_token is None else [self.start_token]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Encode (context, continuation) pairs so that the boundary is exact.

        Context and continuation are encoded together where the result begins with the tokens of the context
        alone, since that is how running text would be tokenised. Where it does not (a merge crosses the
        boundary), the two are encoded apart, so that the context's tokens do not depend on the answer: all
        candidates of a query are then conditioned on the same thing. Raises ValueError for an empty
        continuation, or an empty context with a tokenizer that has no start token.
        """
        contexts = dict.fromkeys(context for context, _ in pairs)
        encoded = dict(zip(contexts, self.encode_all(list(contexts)), strict=True))
        wholes = self.encode_all([context + continuation for context, continuation in pairs])
        result = []
        for (context, continuation), whole in zip(pairs, wholes, strict=True):
            prefix = encoded[context]
            joint = len(whole) > len(prefix) and whole[: len(prefix)] == prefix
            ending = whole[len(prefix) :] if joint else self.encode(continuation)
            before = self.start() + prefix
            if not ending or not before:
                raise ValueError(
                    f"cannot score {continuation!r} after {context[-20:]!r}: an empty context (with no start"
                    " token) or an empty continuation"
                )
            result.append(Pair(before + ending, len(before), joint))
        return result

    def token_scores(
        self,
        rows: Sequence[Sequence[int]],
        firsts: Sequence[int] | None = None,
        what: str = "",
        shared: Sequence[Hashable] | None = None,
    ) -> list[TokenScores]:
        """Score each token of each row given those before it.

        For row r and its entry f of `firsts` (1 if not given; at least 1) the result has arrays of length
        `len(r) - f`: log P(r[i] | r[:i]) in nats (float64, from a float32 log-softmax), whether r[i] was the
        likeliest token, and which was, for i = f ... len(r) - 1. The model reads `r[:-1]`. Rows are batched by
        length and padded on the right, which a causal model cannot see. Rows with the same entry of `shared` are
        continued from a cache of the tokens that all of them begin with, where the model has one; the result is
        the same to rounding. Several processes share the batches. Raises ValueError for a value that is not finite.
        """
        starts = [1] * len(rows) if firsts is None else list(firsts)
        if any(first < 1 for first in starts):
            raise ValueError("firsts: the first scored position must be at least 1")
        budget = min(self.batch_tokens, max(1, LOGITS_PER_BATCH // self.vocab_size))
        batches = plan_batches(rows, starts, shared if shared is not None and self._can_share() else None, budget)
        found: dict[int, TokenScores] = {}
        error = ""
        with self._progress(what, tokens_read(batches, rows)) as progress:
            for batch in batches[self.processes.index :: self.processes.count]:
                try:
                    found.update(self._score_batch(batch, rows, starts))
                except ValueError as caught:
                    error = str(caught)
                    break
                if progress is not None:
                    read = sum(len(rows[row]) - 1 - batch.cut for row in batch.rows)
                    progress.advance(progress.task_ids[0], read * self.processes.count)
        self._read = None
        found = self.processes.gather(found, error)
        self.tokens_run += tokens_read(batches, rows)
        nothing = TokenScores(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
        return [found.get(index, nothing) for index in range(len(rows))]

    def likelihoods(
        self, pairs: Sequence[Pair], what: str = "", shared: Sequence[Hashable] | None = None
    ) -> list[Likelihood]:
        """Return the summed log P(continuation | context) of each encoded pair; `shared` as in `token_scores`."""
        scores = self.token_scores([pair.tokens for pair in pairs], [pair.start for pair in pairs], what, shared)
        return [Likelihood(float(one.nats.sum()), bool(one.hits.all()), tuple(one.best.tolist())) for one in scores]

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: str = "\n") -> list[str]:
        """Continue each prompt greedily and cut before `stop`; needs a Hugging Face model with `generate`."""
        texts = []
        for prompt in prompts:
            ids = torch.tensor([self.start() + self.encode(prompt)], device=self.device)
            with torch.no_grad():
                out = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self._pad,
                )
            self.tokens_run += out.shape[1]
            texts.append(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split(stop)[0])
        return texts

    def parameters(self) -> int:
        """Return the number of parameters, tied weights counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fingerprint(self) -> str:
        """Return the sha256 of every parameter and buffer: names, shapes, types and bytes."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{key} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return digest.hexdigest()

    def configuration(self) -> str:
        """Return the configuration as JSON without what says only where it lay and who wrote it; "" without one."""
        config = getattr(self.model, "config", None)
        if config is None or not hasattr(config, "to_dict"):
            return ""
        own = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
        own.pop("transformers_version", None)
        return json.dumps(own, sort_keys=True, default=str)

    def state_numbers(self, length: int) -> int | None:
        """Return how many numbers the cache holds after `length` tokens of one sequence; None without a cache."""
        token = self.start_token if self.start_token is not None else 0
        ids = torch.full((1, length), token, dtype=torch.long, device=self.device)
        if not self._caches:
            return None
        with torch.no_grad():
            cache = self.model(input_ids=ids, use_cache=True).past_key_values
        return None if cache is None else _numbers_in(cache, set())

    def _can_share(self) -> bool:
        """Return whether the model hands out a cache of transformers' kind; asked of the model once."""
        if self._shares and not self._asked:
            ids = torch.full((1, 2), self._pad, dtype=torch.long, device=self.device)
            with torch.no_grad():
                self._shares = isinstance(self.model(input_ids=ids, use_cache=True).past_key_values, Cache)
            self._asked = True
        return self._shares

    def _cache_of(self, batch: Batch, rows: Sequence[Sequence[int]]) -> Cache:
        """Return a cache that holds each row's prefix; the prefixes are read when the batch is the first of them."""
        key = (batch.heads, batch.cut)
        if self._read is None or self._read[0] != key:
            ids = torch.tensor([list(rows[head][: batch.cut]) for head in batch.heads], device=self.device)
            options = {"logits_to_keep": 1} if self._keeps_logits else {}
            self._read = (key, self.model(input_ids=ids, use_cache=True, **options).past_key_values)
        cache: Cache = copy.deepcopy(self._read[1])
        slots: Any = torch.tensor(batch.slots, device=self.device)
        cache.reorder_cache(slots)
        return cache

    def _score_batch(
        self, batch: Batch, rows: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> dict[int, TokenScores]:
        own = [rows[row][batch.cut :] for row in batch.rows]
        first = [firsts[row] - batch.cut for row in batch.rows]
        longest = max(len(row) for row in own) - 1
        inputs = torch.full((len(own), longest), self._pad, dtype=torch.long)
        targets = torch.full((len(own), longest), self._pad, dtype=torch.long)
        for number, row in enumerate(own):
            tokens = torch.tensor(row, dtype=torch.long)
            inputs[number, : len(row) - 1] = tokens[:-1]
            targets[number, : len(row) - 1] = tokens[1:]
        keep = longest - (min(first) - 1)
        options: dict[str, Any] = {"use_cache": bool(batch.cut)} if self._caches else {}
        if self._keeps_logits and keep < longest:
            options["logits_to_keep"] = keep
        with torch.no_grad():
            if batch.cut:
                options["past_key_values"] = self._cache_of(batch, rows)
            logits = self.model(input_ids=inputs.to(self.device), **options).logits
        offset = longest - logits.shape[1]
        kept = targets[:, offset:].to(logits.device)
        nats = torch.empty(kept.shape)
        best = torch.empty(kept.shape, dtype=torch.long)
        for number in range(len(own)):
            row_logits = logits[number].float()
            chosen = row_logits.gather(-1, kept[number, :, None])[:, 0]
            nats[number] = (chosen - row_logits.logsumexp(-1)).cpu()
            best[number] = row_logits.argmax(-1).cpu()
        results = {}
        for number, index in enumerate(batch.rows):
            span = slice(first[number] - 1 - offset, len(own[number]) - 1 - offset)
            values, likeliest = nats[number, span].double().numpy(), best[number, span].numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: the model gives a log-probability that is not finite")
            hits = likeliest == targets[number, offset:][span].numpy()
            results[index] = TokenScores(values, hits, likeliest)
        return results

    def _progress(self, what: str, total: int) -> AbstractContextManager[Progress | None]:
        if self.quiet or not what or total == 0 or not self.processes.main:
            return nullcontext()
        console = Console(stderr=True)
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        progress.add_task(f"{self.name}: {self.stage}{what}", total=total)
        return progress


def uniform_nats(scorer: Scorer) -> float:
    """Return ln V, the charge for a token that has nothing at all before it."""
    return math.log(scorer.vocab_size)


def _numbers_in(thing: Any, seen: set[int]) -> int:
    """Count the numbers in the tensors that a cache reaches, each tensor once."""
    if isinstance(thing, torch.Tensor):
        thing_id = thing.data_ptr()
        fresh = thing_id not in seen
        seen.add(thing_id)
        return thing.numel() if fresh else 0
    if isinstance(thing, dict):
        return sum(_numbers_in(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple):
        return sum(_numbers_in(value, seen) for value in thing)
    if hasattr(thing, "layers"):
        return _numbers_in(list(thing.layers), seen)
    if type(thing).__module__ == "builtins" or isinstance(thing, type) or id(thing) in seen:
        return 0
    seen.add(id(thing))
    return _numbers_in(vars(thing), seen) if hasattr(thing, "__dict__") else 0

"""Run a model to get the log-probabilities on which all measures of this package are based.

This is the only file that runs a model. Any Hugging Face causal language model with a tokenizer works;
importing `mesalm` registers the model type "mesa" with the Auto classes.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.cache_utils import Cache

import mesalm  # noqa: F401  (registers the model type "mesa")
from mesa_eval.reading.batches import Batch, tokens_read
from mesa_eval.reading.model_source import (
    ModelSource,
    configured_length,
    declared_length,
    find_model,
    one_line,
)
from mesa_eval.reading.processes import Processes
from mesa_eval.reading.reader import NotFiniteError, Reader, TokenScores
from mesa_eval.reading.sharded import in_step, is_sharded
from mesalm.hub.open_model import open_model, open_tokenizer, usable_device
from mesalm.model.cache_mesa import cache_name, returned_cache

LOGITS_AT_ONCE = 2**28  # 1 GiB of float32: a row with more of them is read in pieces, behind a cache


class Scorer(Reader):
    """A causal language model that scores text.

    `model` maps `input_ids` [B, T] to an object with `.logits` [B, T, V]; `tokenizer` is a Hugging Face
    tokenizer. `max_length` is the number of tokens the model was trained to read at once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: ModelSource | None = None,
        device: str = "cpu",
        batch_tokens: int = 8192,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.source = source or ModelSource("", type(model).__name__, "")
        vocab_size = int(getattr(getattr(model, "config", None), "vocab_size", None) or len(tokenizer))
        super().__init__(tokenizer, self.source.name, vocab_size, batch_tokens, quiet)
        self.model = model.to(device).eval()
        self.device = device
        self.logits_at_once = LOGITS_AT_ONCE
        self.processes = processes or Processes()
        declared = declared_length(getattr(model, "config", None), tokenizer)
        self.max_length = self.source.sequence_length or declared
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # the model may lack an added pad token
        self._pad = next((token for token in ends if token is not None and token < vocab_size), 0)
        self._check_tokens([self.start()])
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._caches = "use_cache" in accepted
        self._cache_name = cache_name(model) or ""
        self._shares = self._caches and bool(self._cache_name)
        self._asked = False
        self._ends: dict[str, list[int]] = {}
        self._read: tuple[tuple[tuple[int, ...], int], Cache] | None = None

    @classmethod
    def open(
        cls,
        model: str | ModelSource,
        *,
        device: str = "auto",
        trust_remote_code: bool = False,
        processes: Processes | None = None,
        **options: Any,
    ) -> Scorer:
        """Load a run folder's `final/`, a model folder or a Hub name, or the result of `find_model`, in float32.

        `device` "auto" is CUDA if available, else the CPU; `options` are passed to the class. Raises ValueError with
        one line if there is no such model, the run is not finished, or the tokenizer is missing.
        """
        source = find_model(model) if isinstance(model, str) else model
        own = (processes or Processes()).device
        where = str(usable_device(own if own and device == "auto" else device))
        tokenizer = open_tokenizer(source.argument, trust_remote_code=trust_remote_code)
        loaded = open_model(source.argument, dtype=torch.float32, device=where, trust_remote_code=trust_remote_code)
        return cls(loaded, tokenizer, source=source, device=where, processes=processes, **options)

    def refuses(self, length: int) -> str:
        """Return why the model cannot read so many tokens at once; "" if it can.

        A table of positions is a hard limit. Any other model is tried if the length exceeds the one in its
        configuration, since it may still work.
        """
        limit = configured_length(getattr(self.model, "config", None))
        if limit is not None and limit >= length:
            return ""
        if limit is not None and _has_position_table(self.model, limit):
            return f"its table of positions ends at {limit} tokens, {length} are needed"
        ids = torch.full((1, length), self._pad, dtype=torch.long, device=self.device)
        options = ({"use_cache": False} if self._caches else {}) | ({"logits_to_keep": 1} if self._keeps_logits else {})
        refused = {}
        try:
            with torch.no_grad():
                self.model(input_ids=ids, **options)
        except (ValueError, IndexError, RuntimeError) as error:
            refused[self.processes.index] = f"{length} tokens cannot be read: {one_line(error)}"
        return next(iter(self.processes.gather(refused).values()), "")

    def writes(self) -> bool:
        """Return whether the model has `generate`, like all causal models of transformers."""
        return hasattr(self.model, "generate")

    def score_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], firsts: Sequence[int], what: str
    ) -> dict[int, TokenScores]:
        """Score this process's share of the batches, and return the results of all processes; see `token_scores`."""
        return self._shared_out(
            batches,
            lambda batch: self._score_batch(batch, rows, firsts),
            lambda batch: sum(len(rows[row]) - 1 - batch.cut for row in batch.rows),
            what,
            tokens_read(batches, rows),
        )

    def continue_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], most: Sequence[int], stop: str, what: str
    ) -> dict[int, list[int]]:
        """Continue this process's share of the prompts; see `generate`."""
        ends = self._tokens_with(stop)
        return self._shared_out(
            batches,
            lambda batch: self._continue_batch(batch, rows, most, ends),
            lambda batch: sum(len(rows[row]) + most[row] - 1 for row in batch.rows),
            what,
            sum(len(rows[row]) + most[row] - 1 for batch in batches for row in batch.rows),
        )

    def _shared_out(
        self,
        batches: Sequence[Batch],
        run: Callable[[Batch], dict[int, Any]],
        size: Callable[[Batch], int],
        what: str,
        total: int,
    ) -> dict[int, Any]:
        """Run this process's share of the batches, and return the results of all processes."""
        found: dict[int, Any] = {}
        error: ValueError | None = None
        if is_sharded(self.model):
            self.shares_prefixes()  # must run on all processes, not only on those that need it later
        hidden = self.quiet or not what or not self.processes.main or None  # None: where no person watches
        bar = tqdm(total=total, desc=f"{self.name}: {self.stage}{what}", unit=" tokens", leave=False, disable=hidden)
        with bar, in_step(self.model):
            for batch in batches[self.processes.index :: self.processes.count]:
                try:
                    found.update(run(batch))
                except ValueError as caught:
                    error = caught if isinstance(caught, NotFiniteError) else ValueError(str(caught))
                    break
                bar.update(size(batch) * self.processes.count)
        self._read = None
        return self.processes.gather(found, error)

    def _tokens_with(self, stop: str) -> list[int]:
        """Return the tokens that contain `stop`, and those that end a text or begin the next one."""
        if stop not in self._ends:
            written = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
            ends = {token for token, text in enumerate(written) if stop in text}
            self._ends[stop] = sorted(ends | ({self.tokenizer.eos_token_id, self.tokenizer.bos_token_id} - {None}))
        return self._ends[stop]

    def _continue_batch(
        self, batch: Batch, rows: Sequence[Sequence[int]], most: Sequence[int], ends: list[int]
    ) -> dict[int, list[int]]:
        longest = max(len(rows[row]) for row in batch.rows)
        padding = [longest - len(rows[row]) for row in batch.rows]
        ids = torch.tensor(
            [[self._pad] * count + list(rows[row]) for row, count in zip(batch.rows, padding, strict=True)],
            device=self.device,
        )
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(self.device)
        with torch.no_grad(), _by_likelihood(self.model):
            out = self.model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=most[batch.rows[0]],
                pad_token_id=self._pad,
                eos_token_id=ends or None,
                **({"synced_gpus": False} if is_sharded(self.model) else {}),  # `in_step` does it for all passes
            )
        return {row: _up_to(out[place, ids.shape[1] :].tolist(), set(ends)) for place, row in enumerate(batch.rows)}

    def parameters(self) -> int:
        """Return the number of parameters, tied weights counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fingerprint(self) -> str:
        """Return the sha256 of every parameter and buffer; see `weights_digest`."""
        return weights_digest(self.model)

    def configuration(self) -> str:
        """Return the configuration as JSON, without path and library versions; "" if there is none."""
        config = getattr(self.model, "config", None)
        if config is None or not hasattr(config, "to_dict"):
            return ""
        own = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
        own.pop("transformers_version", None)
        return json.dumps(own, sort_keys=True, default=str)

    def state_numbers(self, length: int) -> int | None:
        """Return how many numbers the cache holds per sequence after `length` tokens; None without a cache."""
        token = self.start_token if self.start_token is not None else 0
        ids = torch.full((1, length), token, dtype=torch.long, device=self.device)
        if not self._caches:
            return None
        with torch.no_grad():
            cache = returned_cache(self.model(input_ids=ids, use_cache=True))
        return None if cache is None else _numbers_in(cache, set())

    def shares_prefixes(self) -> bool:
        """Return whether the model returns a cache of transformers' kind; tested once."""
        if self._shares and not self._asked:
            ids = torch.full((1, 2), self._pad, dtype=torch.long, device=self.device)
            with torch.no_grad():
                self._shares = isinstance(returned_cache(self.model(input_ids=ids, use_cache=True)), Cache)
            self._asked = True
        return self._shares

    def _cache_of(self, batch: Batch, rows: Sequence[Sequence[int]]) -> Cache:
        """Return a cache with each row's prefix; the first batch with these prefixes reads them."""
        key = (batch.heads, batch.cut)
        if self._read is None or self._read[0] != key:
            ids = torch.tensor([list(rows[head][: batch.cut]) for head in batch.heads], device=self.device)
            options = {"logits_to_keep": 1} if self._keeps_logits else {}
            self._read = (key, returned_cache(self.model(input_ids=ids, use_cache=True, **options)))
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
        step = self.logits_at_once // (len(own) * self.vocab_size)
        step = max(1, step) if step < keep and self.shares_prefixes() else longest
        options: dict[str, Any] = {"use_cache": bool(batch.cut) or step < longest} if self._caches else {}
        if self._keeps_logits and keep < longest == step:
            options["logits_to_keep"] = keep
        nats = torch.zeros(targets.shape)
        best = torch.zeros(targets.shape, dtype=torch.long)
        with torch.no_grad():
            if batch.cut:
                options[self._cache_name] = self._cache_of(batch, rows)
            for begin in range(0, longest, step):
                piece = inputs[:, begin : begin + step].to(self.device)
                out = self.model(input_ids=piece, **options)
                end = begin + piece.shape[1]
                there = slice(end - out.logits.shape[1], end)
                for number in range(len(own)):
                    row_logits = out.logits[number].float()
                    right = targets[number, there].to(row_logits.device)
                    chosen = row_logits.gather(-1, right[:, None])[:, 0]
                    nats[number, there] = (chosen - row_logits.logsumexp(-1)).cpu()
                    best[number, there] = row_logits.argmax(-1).cpu()
                if end < longest:
                    options[self._cache_name] = returned_cache(out)
        results = {}
        for number, index in enumerate(batch.rows):
            span = slice(first[number] - 1, len(own[number]) - 1)
            values, likeliest = nats[number, span].double().numpy(), best[number, span].numpy()
            if not np.isfinite(values).all():
                raise NotFiniteError(f"{self.name}: the model gives a log-probability that is not finite")
            hits = likeliest == targets[number, span].numpy()
            results[index] = TokenScores(values, hits, likeliest)
        return results


def _has_position_table(model: Any, limit: int) -> bool:
    """Return whether a model has a table of positions, learned or not, with `limit` rows or two more."""
    words = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    tables = [
        module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not words
    ]
    tables += [table for name, table in model.named_buffers() if "position" in name and table.ndim == 2]
    return any(limit <= len(table) <= limit + 2 for table in tables)


@contextmanager
def _by_likelihood(model: Any) -> Iterator[None]:
    """Make generation purely greedy, without penalties and banned tokens of a generation_config.json."""
    own = [(part, part.generation_config) for part in model.modules() if hasattr(part, "generation_config")]
    try:
        for part, _ in own:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, settings in own:
            part.generation_config = settings


def _up_to(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens up to and including the first of `ends`; the rest is padding."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


def _numbers_in(thing: Any, seen: set[int]) -> int:
    """Count the numbers in all tensors reachable from a cache, each tensor once."""
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


def weights_digest(model: torch.nn.Module) -> str:
    """Return the sha256 of every parameter and buffer: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()

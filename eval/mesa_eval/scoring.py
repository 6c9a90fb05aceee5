"""Run a model: the log-probabilities that every measure of this package is made of.

This is the only file that runs a model. Any Hugging Face causal language model with its tokenizer will do;
importing `mesalm` makes the model type "mesa" known to the Auto classes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import mesalm  # noqa: F401  (registers the model type "mesa")
from mesa_eval.model_source import ModelSource, find_model
from mesalm.hub.open_model import open_model, open_tokenizer

LOGITS_PER_BATCH = 2**26  # 256 MiB of float32: a large vocabulary then gets smaller batches
LENGTH_WHEN_UNKNOWN = 1024


@dataclass(frozen=True)
class Pair:
    """Hold an encoded (context, continuation): `tokens[start:]` is the continuation.

    `joint` is False where encoding context and continuation together did not begin with the tokens of the
    context alone, so that the two were encoded apart.
    """

    tokens: list[int]
    start: int
    joint: bool


@dataclass(frozen=True)
class Likelihood:
    """Hold log P(continuation | context) in nats, and whether every token of it was the likeliest one."""

    nats: float
    greedy: bool


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
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: {batch_tokens} given; it must be at least 1")
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.source = source or ModelSource("", type(model).__name__, "")
        self.device = device
        self.batch_tokens = batch_tokens
        self.quiet = quiet
        self.max_length = (
            max_length or self.source.sequence_length or _declared_length(getattr(model, "config", None), tokenizer)
        )
        self.tokens_run = 0
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.start_token: int | None = bos if bos is not None else eos
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos or 0)
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._caches = "use_cache" in accepted

    @classmethod
    def open(
        cls,
        model: str,
        *,
        device: str = "auto",
        batch_tokens: int = 8192,
        trust_remote_code: bool = False,
        quiet: bool = False,
    ) -> Scorer:
        """Load a run folder's `final/`, a model folder or a Hub name, in float32.

        `device` "auto" is CUDA where there is one, else the CPU. Raises ValueError in one line when there is
        no such model, the run is not finished, or the tokenizer is missing.
        """
        source = find_model(model)
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        tokenizer = load_tokenizer(source, trust_remote_code)
        try:
            loaded = open_model(
                source.load_from, dtype=torch.float32, device=where, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{model}: the model cannot be loaded: {_one_line(error)}") from error
        return cls(loaded, tokenizer, source=source, device=where, batch_tokens=batch_tokens, quiet=quiet)

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
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int] | None = None, what: str = ""
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Score each token of each row given those before it.

        For row r and its entry f of `firsts` (1 if not given; at least 1) the result is two arrays of length
        `len(r) - f`: log P(r[i] | r[:i]) in nats (float64, from a float32 log-softmax) and whether r[i] was
        the likeliest token, for i = f ... len(r) - 1. The model reads `r[:-1]`. Rows are batched by length
        and padded on the right, which a causal model cannot see. Raises ValueError for a value that is not finite.
        """
        starts = [1] * len(rows) if firsts is None else list(firsts)
        if any(first < 1 for first in starts):
            raise ValueError("firsts: the first scored position must be at least 1")
        scores: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0), np.zeros(0, bool))] * len(rows)
        wanted = [index for index, row in enumerate(rows) if len(row) > starts[index]]
        wanted.sort(key=lambda index: len(rows[index]), reverse=True)
        with self._progress(what, sum(len(rows[index]) - 1 for index in wanted)) as progress:
            for batch in self._batches([len(rows[index]) - 1 for index in wanted]):
                chosen = [wanted[position] for position in batch]
                results = self._score_batch([rows[i] for i in chosen], [starts[i] for i in chosen])
                for index, result in zip(chosen, results, strict=True):
                    scores[index] = result
                read = sum(len(rows[index]) - 1 for index in chosen)
                self.tokens_run += read
                if progress is not None:
                    progress.advance(progress.task_ids[0], read)
        return scores

    def likelihoods(self, pairs: Sequence[Pair], what: str = "") -> list[Likelihood]:
        """Return the summed log P(continuation | context) of each encoded pair."""
        scores = self.token_scores([pair.tokens for pair in pairs], [pair.start for pair in pairs], what)
        return [Likelihood(float(nats.sum()), bool(hits.all())) for nats, hits in scores]

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

    def state_numbers(self, length: int) -> int | None:
        """Return how many numbers the cache holds after `length` tokens of one sequence; None without a cache."""
        token = self.start_token if self.start_token is not None else 0
        ids = torch.full((1, length), token, dtype=torch.long, device=self.device)
        if not self._caches:
            return None
        with torch.no_grad():
            cache = self.model(input_ids=ids, use_cache=True).past_key_values
        return None if cache is None else _numbers_in(cache, set())

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Cut indices of descending `lengths` into batches within the token and the logits budget."""
        budget = min(self.batch_tokens, max(1, LOGITS_PER_BATCH // self.vocab_size))
        position = 0
        while position < len(lengths):
            rows = max(1, budget // lengths[position])
            yield list(range(position, min(position + rows, len(lengths))))
            position += rows

    def _score_batch(self, rows: list[Sequence[int]], firsts: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        longest = max(len(row) for row in rows) - 1
        inputs = torch.full((len(rows), longest), self._pad, dtype=torch.long)
        targets = torch.full((len(rows), longest), self._pad, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens = torch.tensor(row, dtype=torch.long)
            inputs[number, : len(row) - 1] = tokens[:-1]
            targets[number, : len(row) - 1] = tokens[1:]
        keep = longest - (min(firsts) - 1)
        options: dict[str, Any] = {"use_cache": False} if self._caches else {}
        if self._keeps_logits and keep < longest:
            options["logits_to_keep"] = keep
        with torch.no_grad():
            logits = self.model(input_ids=inputs.to(self.device), **options).logits
        offset = longest - logits.shape[1]
        kept = targets[:, offset:].to(logits.device)
        nats = torch.empty(kept.shape)
        hits = torch.empty(kept.shape, dtype=torch.bool)
        for number in range(len(rows)):
            row_logits = logits[number].float()
            chosen = row_logits.gather(-1, kept[number, :, None])[:, 0]
            nats[number] = (chosen - row_logits.logsumexp(-1)).cpu()
            hits[number] = (row_logits.argmax(-1) == kept[number]).cpu()
        results = []
        for number, row in enumerate(rows):
            span = slice(firsts[number] - 1 - offset, len(row) - 1 - offset)
            values = nats[number, span].double().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: the model gives a log-probability that is not finite")
            results.append((values, hits[number, span].numpy()))
        return results

    def _progress(self, what: str, total: int) -> AbstractContextManager[Progress | None]:
        if self.quiet or not what or total == 0:
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
        progress.add_task(f"{self.name}: {what}", total=total)
        return progress


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that lies beside a model; raise ValueError in one line if there is none."""
    try:
        return open_tokenizer(source.load_from, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{_one_line(error)}; save the tokenizer beside the model") from error


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a sha256 that is equal for tokenizers that encode alike: the vocabulary and its rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    rules["start"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def uniform_nats(scorer: Scorer) -> float:
    """Return ln V, the charge for a token that has nothing at all before it."""
    return math.log(scorer.vocab_size)


def training_length(source: ModelSource, tokenizer: Any, trust_remote_code: bool = False) -> int:
    """Return how many tokens a model was trained to read at once, without loading its weights.

    A run's recipe says it; else the configuration, the tokenizer, or 1024 if neither does. Raises ValueError
    in one line if the configuration cannot be read.
    """
    if source.sequence_length:
        return source.sequence_length
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.load_from, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{source.argument}: the configuration cannot be read: {_one_line(error)}") from error
    return _declared_length(config, tokenizer)


def _declared_length(config: Any, tokenizer: Any) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 1:
            return value
    declared = getattr(tokenizer, "model_max_length", None)
    return int(declared) if isinstance(declared, int) and 1 < declared < 10**6 else LENGTH_WHEN_UNKNOWN


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]

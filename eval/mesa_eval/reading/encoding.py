"""Turn text into tokens: plain text, and (context, continuation) pairs with an exact boundary.

Few-shot prompts repeat the same lines thousands of times. If a tokenizer is known to split at every line end anyway,
each distinct line is encoded once, and the results are concatenated, which gives the tokens of the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mesalm.data.bpe import count_lost

LINE_ENDS = re.compile(r"(?<=[!-~])(?=\n)")
MOST_KNOWN = 2**17  # lines remembered at once


@dataclass(frozen=True)
class Pair:
    """An encoded (context, continuation): `tokens[start:]` is the continuation."""

    tokens: list[int]
    start: int


class TextEncoder:
    """A Hugging Face tokenizer that encodes text and pairs as plain text.

    `start_token` is the first token of every document and prompt: the tokenizer's bos, else its eos, else None.
    """

    def __init__(self, tokenizer: Any, most_known: int = MOST_KNOWN) -> None:
        self.tokenizer = tokenizer
        self.most_known = most_known
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.start_token: int | None = bos if bos is not None else eos
        self._by_lines = cuts_before_line_ends(tokenizer)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode text as plain text: special tokens are neither added nor recognised in the text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts at once; see `encode`."""
        if not self._by_lines:
            return self._encode_whole(texts)
        cut = [LINE_ENDS.split(text) for text in texts]
        if len(self._known) > self.most_known:
            self._known.clear()
        new = list(dict.fromkeys(line for lines in cut for line in lines if line not in self._known))
        self._known.update(zip(new, self._encode_whole(new), strict=True))
        return [list(chain.from_iterable([self._known[line] for line in lines])) for lines in cut]

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
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

    def lost(self, texts: Sequence[str], encoded: Sequence[list[int]]) -> int:
        """Count the texts that decoding their tokens does not restore; see `mesalm.data.bpe.count_lost`."""
        return count_lost(self.tokenizer, texts, encoded)

    def start(self) -> list[int]:
        """Return the tokens before every document and prompt (none or one)."""
        return [] if self.start_token is None else [self.start_token]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Encode (context, continuation) pairs so that the boundary is exact.

        Context and continuation are encoded together, as running text would be, if the result begins with the
        tokens of the context alone. Otherwise (a merge crosses the boundary) they are encoded separately, so
        that the context's tokens do not depend on the answer and all candidates of a query are conditioned on
        the same tokens. Raises ValueError for an empty continuation, or an empty context with a tokenizer
        that has no start token.
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
            result.append(Pair(before + ending, len(before)))
        return result


def cuts_before_line_ends(tokenizer: Any) -> bool:
    """Return whether the tokenizer is known to split between a visible ASCII character and the line end after it.

    This holds for byte-level BPE with GPT-2's pattern, also with digits split one by one and long words cut: a word has
    a line end only at its beginning, and its tokens do not depend on the text before. The tokenizer must not
    change the text (a normalizer, an added space), drop merges at random, or have added tokens that are not special,
    which could span a line end. All other tokenizers encode whole texts.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    rules = json.loads(backend.to_str())
    before = rules.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if steps[-1].get("type") == "FixedLength":
        steps = steps[:-1]
    model = rules["model"]
    return (
        rules.get("normalizer") is None
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and all(token["special"] for token in rules.get("added_tokens", ()))
        and {step.get("type") for step in steps} <= {"ByteLevel", "Digits"}
        and any(step.get("use_regex") for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
    )

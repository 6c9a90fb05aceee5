"""Perplexity and bits per byte of whole documents, with every token scored exactly once.

A document is `[start] + tokens`. It is read in windows of at most W input tokens, where W is the length the model
was trained on. The first window scores its W tokens; each further one scores the next W/2 (rounded down, at
least 1) tokens with the W/2 or more before them as context. So no token after the first W is scored with less
than half a window of context, at about twice the cost of disjoint windows.

    perplexity = exp(nats / tokens)        bits per byte = nats / ln 2 / bytes

`tokens` counts the document's own tokens (the start token is read, not scored) and `bytes` its UTF-8 bytes.
A tokenizer with neither bos nor eos has no start token: the first token of a document then costs ln V. If decoding its
tokens does not restore a document (`Encoder.lost`), there are no bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesa_eval.measures.scores import Measure
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.reader import Reader
from mesa_eval.uncertainty.bootstrap import effective_units


@dataclass(frozen=True)
class DocumentScore:
    """A document's size, its negative log-likelihood in nats, and whether its tokens decode to another text."""

    identifier: str
    domain: str
    file: str
    bytes: int
    tokens: int
    nats: float
    lost: bool = False


@dataclass(frozen=True)
class Window:
    """The tokens of a row that are read (`begin` to `end` - 1), and the first that is scored."""

    begin: int
    first_scored: int
    end: int


def cut_windows(length: int, window: int) -> list[Window]:
    """Cut a row of `length` tokens into windows that score tokens 1 ... length - 1 once each.

    A window reads at most `window` input tokens and so spans at most `window + 1` tokens. Raises ValueError
    for a window below 1.
    """
    if window < 1:
        raise ValueError(f"window: {window} given; it must be at least 1")
    windows = []
    scored = 1
    stride = max(1, window // 2)
    while scored < length:
        end = min(length, window + 1 if scored == 1 else scored + stride)
        windows.append(Window(max(0, end - window - 1), scored, end))
        scored = end
    return windows


def score_documents(scorer: Reader, documents: Sequence[HeldOutDocument], window: int) -> list[DocumentScore]:
    """Return each document's nats, tokens and bytes; see the module's docstring for the counting."""
    rows: list[list[int]] = []
    firsts: list[int] = []
    owners: list[int] = []
    encoded = scorer.encode_all([document.text for document in documents])
    charge = 0.0 if scorer.start_token is not None else math.log(scorer.vocab_size)
    for number, tokens in enumerate(encoded):
        row = scorer.start() + tokens
        for cut in cut_windows(len(row), window):
            rows.append(row[cut.begin : cut.end])
            firsts.append(cut.first_scored - cut.begin)
            owners.append(number)
    nats = [charge if tokens else 0.0 for tokens in encoded]
    for owner, scored in zip(owners, scorer.token_scores(rows, firsts, "text"), strict=True):
        nats[owner] -= float(scored.nats.sum())
    return [
        DocumentScore(
            document.identifier,
            document.domain,
            document.file,
            document.bytes,
            len(tokens),
            total,
            bool(scorer.lost([document.text], [tokens])),
        )
        for document, tokens, total in zip(documents, encoded, nats, strict=True)
    ]


def text_measures(scores: Sequence[DocumentScore], items: str = "") -> list[Measure]:
    """Return bits per byte over all text, by domain and by file, and the perplexity per token over all text.

    Domains and files are listed if there are several of them, files only if they divide the text differently from
    the domains. There are no bits per byte if a document was lost.
    """
    domains = sorted({score.domain for score in scores})
    files = sorted({score.file for score in scores})
    measures = [_bits_per_byte("all text", scores, items)]
    for domain in domains if len(domains) > 1 else []:
        chosen = [score for score in scores if score.domain == domain]
        measures.append(_bits_per_byte(domain, chosen, items, group=domain))
    for file in files if len(files) > 1 and len({(score.file, score.domain) for score in scores}) > len(files) else []:
        chosen = [score for score in scores if score.file == file]
        measures.append(_bits_per_byte(f"file {file}", chosen, items, variant="file", group=file))
    whole = Measure(
        section="text",
        metric="perplexity",
        label="perplexity",
        unit="per token",
        better="lower",
        digits=2,
        resampled="document",
        units=[score.identifier for score in scores],
        numerator=[[score.nats] for score in scores],
        denominator=[[float(score.tokens)] for score in scores],
        transform="exp",
        items=items,
    )
    return [whole] if any(score.lost for score in scores) else [*measures, whole]


def _bits_per_byte(
    name: str, scores: Sequence[DocumentScore], items: str, *, variant: str = "", group: str = ""
) -> Measure:
    sizes = [[float(score.bytes)] for score in scores]
    effective = f"documents, effective number {effective_units(np.array(sizes)):.1f}"
    return Measure(
        section="text",
        metric="bits_per_byte",
        variant=variant,
        group=group,
        label=f"{name} ({len(scores)} {effective if len(scores) > 1 else 'document'})",
        unit="bits per byte",
        better="lower",
        digits=4,
        resampled="document",
        units=[score.identifier for score in scores],
        numerator=[[score.nats / math.log(2)] for score in scores],
        denominator=sizes,
        any_tokenizer=True,
        items=items,
    )

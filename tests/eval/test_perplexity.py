"""Perplexity and bits per byte: every token once, and answers known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesa_eval.measures.perplexity import DocumentScore, cut_windows, score_documents, text_measures
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.scoring import Scorer


def over_all_text(scores: list[DocumentScore], metric: str) -> float:
    """Return perplexity or bits per byte over all text, as a comparison makes it of a measure."""
    (found,) = (each for each in text_measures(scores) if each.metric == metric and not each.group)
    ratio = np.sum(found.numerator) / np.sum(found.denominator)
    return float(np.exp(ratio) if found.transform else ratio)


@given(st.integers(0, 300), st.integers(1, 64))
def test_windows_score_every_token_once_with_half_a_window_of_context(length: int, window: int) -> None:
    windows = cut_windows(length, window)
    scored = [position for cut in windows for position in range(cut.first_scored, cut.end)]
    assert scored == list(range(1, length))
    for number, cut in enumerate(windows):
        assert 0 <= cut.begin < cut.first_scored
        assert cut.end - 1 - cut.begin <= window
        if number:
            assert cut.first_scored - cut.begin >= window - max(1, window // 2) + 1


def test_a_short_document_is_one_direct_forward(make, tokenizer) -> None:
    model = make.llama(258, seed=1)
    text = "a document of some bytes, and an é"
    row = [0, *tokenizer(text).input_ids]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss.item()
    (score,) = score_documents(Scorer(model, tokenizer, quiet=True), [HeldOutDocument("a", "d", text)], 64)
    assert score.bytes == len(text) + 1
    assert score.tokens == len(row) - 1
    assert score.nats / score.tokens == pytest.approx(loss, abs=1e-5)
    assert over_all_text([score], "perplexity") == pytest.approx(math.exp(loss), rel=1e-5)
    assert over_all_text([score], "bits_per_byte") == pytest.approx(score.nats / math.log(2) / score.bytes)


def test_a_long_document_is_read_in_strides(make, tokenizer) -> None:
    model = make.llama(258, seed=2)
    text = "".join(chr(97 + (7 * n * n) % 26) for n in range(150))
    row = torch.tensor([0, *tokenizer(text).input_ids])
    expected = 0.0
    position = 1
    with torch.no_grad():
        while position < len(row):
            end = min(len(row), 33 if position == 1 else position + 16)
            begin = max(0, end - 33)
            logits = model(input_ids=row[None, begin : end - 1]).logits[0].double().log_softmax(-1)
            for target in range(position, end):
                expected -= logits[target - 1 - begin, row[target]].item()
            position = end
    (score,) = score_documents(Scorer(model, tokenizer, quiet=True), [HeldOutDocument("a", "d", text)], 32)
    assert score.nats == pytest.approx(expected, abs=1e-3)


def test_a_uniform_model_pays_log2_of_the_vocabulary(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    documents = [HeldOutDocument("a", "x", "plain text" * 9), HeldOutDocument("b", "y", "more")]
    scores = score_documents(scorer, documents, 16)
    assert over_all_text(scores, "bits_per_byte") == pytest.approx(math.log2(258), abs=1e-6)
    assert over_all_text(scores, "perplexity") == pytest.approx(258, rel=1e-6)
    assert [score.tokens for score in scores] == [90, 4]


def test_bits_go_by_bytes_and_perplexity_by_tokens(make) -> None:
    tokenizer = make.tokenizer(merges_from="abcd " * 50, size=262)
    size = len(tokenizer)
    scorer = Scorer(make.table(torch.zeros(size, size)), tokenizer, quiet=True)
    scores = score_documents(scorer, [HeldOutDocument("a", "d", "abcd abcd"), HeldOutDocument("b", "d", "xyz")], 8)
    tokens = len(tokenizer("abcd abcd").input_ids) + 3
    assert tokens < 9 + 3
    assert sum(score.tokens for score in scores) == tokens
    assert over_all_text(scores, "bits_per_byte") == pytest.approx(math.log2(size) * tokens / (9 + 3), rel=1e-6)
    assert over_all_text(scores, "perplexity") == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("window", [2, 3, 64])
def test_a_bigram_model_with_known_answers(make, tokenizer, window: int) -> None:
    a, b = tokenizer("ab").input_ids
    table = torch.full((258, 258), -1e4)
    table[0, a] = 0.0
    table[a, a], table[a, b] = math.log(0.25), math.log(0.75)
    table[b, a], table[b, b] = math.log(0.5), math.log(0.5)
    scorer = Scorer(make.table(table), tokenizer, quiet=True)
    (score,) = score_documents(scorer, [HeldOutDocument("a", "d", "abba")], window)
    # start -> a: 1, a -> b: 3/4, b -> b: 1/2, b -> a: 1/2
    assert over_all_text([score], "bits_per_byte") == pytest.approx((math.log2(4 / 3) + 2) / 4, abs=1e-6)


def test_without_a_start_token_the_first_token_costs_ln_v(make) -> None:
    tokenizer = make.tokenizer(start=False)
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    assert scorer.start_token is None
    scores = score_documents(scorer, [HeldOutDocument("a", "d", "abc"), HeldOutDocument("b", "d", "x")], 8)
    np.testing.assert_allclose([score.nats for score in scores], [3 * math.log(258), math.log(258)], rtol=1e-6)

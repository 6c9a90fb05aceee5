"""Loss past the window: closed forms, models that break there, and models that cannot read so far."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from mesa_eval.comparison.rows import build_comparison
from mesa_eval.evaluate import evaluate
from mesa_eval.measures.length import length_bins, length_measures, score_length
from mesa_eval.measures.scores import Note
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.scoring import Scorer
from mesa_eval.report.figures import position_figure
from mesa_eval.report.markdown_report import render_markdown
from mesa_eval.report.page import render_page
from mesa_eval.report.wording import summarise

LONG = [
    HeldOutDocument(name, "x", "".join(chr(97 + (n * n + n // 7 + shift) % 26) for n in range(700)))
    for shift, name in enumerate(("a", "b"))
]
LETTERS = [ord(letter) - ord("!") + 2 for letter in "abcdefghijklmnopqrstuvwxyz"]  # behind two special tokens


class FadingModel(torch.nn.Module):
    """Know that a letter comes next until `end` positions are read, and give all tokens alike afterwards."""

    def __init__(self, end: int, vocabulary: int, most: int | None = None) -> None:
        super().__init__()
        self.end = end
        self.vocabulary = vocabulary
        self.most = most

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        if self.most is not None and input_ids.shape[1] > self.most:
            raise ValueError(f"{input_ids.shape[1]} tokens are more than {self.most}")
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        logits[:, : self.end, LETTERS] = 30.0
        return SimpleNamespace(logits=logits)


def test_the_bins_double_up_to_eight_windows() -> None:
    assert length_bins(64) == [(33, 64), (65, 128), (129, 256), (257, 512)]


@pytest.mark.parametrize(("end", "expected"), [(1000, (0, 0, 0, 0)), (64, (0, 1, 1, 1)), (192, (0, 0, 0.5, 1))])
def test_a_model_that_fades_is_found_out(make, tokenizer, end: int, expected: tuple[float, ...]) -> None:
    assert set(tokenizer(LONG[0].text).input_ids) <= set(LETTERS)
    scorer = Scorer(FadingModel(end, 258), tokenizer, quiet=True)
    scores = score_length(scorer, LONG, 64, 4, 4, seed=0)
    measures = length_measures(scores)
    letter, uniform = np.log(26), np.log(258)
    assert [measure.key for measure in measures[:-1]] == [
        "length/33-64",
        "length/65-128",
        "length/129-256",
        "length/257-512",
    ]
    for measure, share in zip(measures, (*expected, None), strict=True):
        assert measure.section == "length"
        assert measure.units == ["a", "b"] or measure.units == ["b", "a"]
        wanted = uniform - letter if share is None else letter + share * (uniform - letter)
        wanted = wanted * (expected[-1] - expected[0]) if share is None else wanted
        found = np.sum(measure.numerator) / np.sum(measure.denominator)
        assert found == pytest.approx(wanted, abs=0.01)
    assert measures[-1].key == "length_growth"
    assert measures[-1].label == "loss at 257-512 less loss at 33-64"


def test_positions_agree_with_a_direct_forward(make, tokenizer) -> None:
    model = make.llama(258, seed=4)
    rows: list[list[int]] = []
    scorer = Scorer(model, tokenizer, quiet=True)
    plain = scorer.token_scores
    scorer.token_scores = lambda own, *rest, **named: rows.extend(own) or plain(own, *rest, **named)
    scores = score_length(scorer, LONG[:1], 64, 1, 1, seed=0)
    (row,) = rows
    assert len(row) == 513
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
    for measure, (first, last) in zip(length_measures(scores), length_bins(64), strict=False):
        losses = [-logits[at - 1, row[at]].item() for at in range(first, last + 1)]
        assert measure.numerator[0][0] == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GPT2LMHeadModel, GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2, vocab_size=258)),
        (
            OPTForCausalLM,
            OPTConfig(
                vocab_size=258, max_position_embeddings=64, **TINY, ffn_dim=16, word_embed_proj_dim=32,
            ),
        ),
    ],
)  # fmt: skip
def test_a_table_of_positions_is_told(tokenizer, kind, config) -> None:
    scorer = Scorer(kind(config), tokenizer, quiet=True)
    assert scorer.refuses(64) == ""
    with pytest.raises(ValueError, match="its table of positions ends at 64 tokens, 512 are needed"):
        score_length(scorer, LONG, 64, 4, 4, seed=0)


def test_what_raises_and_what_is_too_short_is_told(make, tokenizer) -> None:
    with pytest.raises(ValueError, match="512 tokens cannot be read: 512 tokens are more than 100"):
        score_length(Scorer(FadingModel(9, 258, most=100), tokenizer, quiet=True), LONG, 64, 4, 4, seed=0)
    scorer = Scorer(FadingModel(9, 258, most=100), tokenizer, quiet=True)
    with pytest.raises(ValueError, match="no document has 1025 tokens"):
        score_length(scorer, LONG, 128, 4, 4, seed=0)
    with pytest.raises(ValueError, match="a window of 4 tokens"):
        score_length(scorer, LONG, 4, 4, 4, seed=0)
    assert scorer.refuses(100) == ""


@pytest.mark.parametrize("kind", ["mesa", "llama"])
def test_a_long_row_is_read_in_pieces(make, save_mesa, tokenizer, tmp_path, kind) -> None:
    """A model's own maximum, 128 and 64 positions, does not keep it from reading on."""
    if kind == "mesa":
        scorer = Scorer.open(save_mesa(tmp_path / "mesa", tokenizer), device="cpu", quiet=True)
    else:
        scorer = Scorer(make.llama(258, seed=4), tokenizer, quiet=True)
    whole = score_length(scorer, LONG, 64, 2, 2, seed=0)
    lengths: list[int] = []
    scorer.model.register_forward_pre_hook(
        lambda model, args, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    scorer.logits_at_once = 100 * 258
    pieces = score_length(scorer, LONG, 64, 2, 2, seed=0)
    assert [length for length in lengths if length not in (2, 512)] == [50] * 10 + [12]  # two rows at once
    np.testing.assert_allclose(pieces.losses, whole.losses, atol=2e-4)


def test_the_report_shows_it(save_model, text_file: str) -> None:
    models = [save_model(name, seed, length=32) for name, seed in (("one", 1), ("two", 2))]
    scores = evaluate(models, texts=[text_file], tasks=["none"], quiet=True, device="cpu")
    comparison = build_comparison(scores)
    row = comparison.row("length_growth")
    assert row.better == "lower"
    assert comparison.verdict(row, 1) == ""  # it is none of the declared tests
    assert "## Loss past the window" in render_markdown(comparison, summarise(comparison))
    assert "one from " in position_figure(comparison, "length", "Loss past the window")
    page = render_page(comparison, summarise(comparison))
    assert "4 windows of 256 tokens from 4 documents (effective number 4.0)" in page
    assert "Fewer than 10 effective documents are behind: section length." in page


def test_a_process_that_is_lost_is_no_result(
    save_model, text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, the part is measured."""
    model, options = save_model("one", 1, length=32), {"texts": [text_file], "tasks": ["none"], "device": "cpu"}

    def lost(*_: Any) -> None:
        raise ValueError("another process has ended or does not answer")

    with monkeypatch.context() as patched:
        patched.setattr("mesa_eval.measures.parts.score_length", lost)
        with pytest.raises(ValueError, match="another process has ended"):
            evaluate([model], **options, quiet=True, out=tmp_path)
    (scores,) = evaluate([model], **options, quiet=True, out=tmp_path)
    assert scores.measure("length_growth") is not None


def test_the_report_says_why_it_is_missing(save_model, text_file: str) -> None:
    (scores,) = evaluate([save_model("one", 1)], texts=[text_file], tasks=["none"], quiet=True, device="cpu")
    assert scores.part("length").notes == [
        Note("loss past the window is not measured: no document has 513 tokens", own=True)
    ]
    assert scores.part("length").measures == []

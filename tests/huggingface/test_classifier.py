"""The head that classifies sequences: padding on either side, labels of every kind, loading by the Auto class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from mesalm import MesaForCausalLM, MesaForSequenceClassification
from mesalm.model.cache_mesa import returned_cache

Build = Callable[..., MesaForSequenceClassification]
Draw = Callable[..., torch.Tensor]
HEAD = {"model_class": MesaForSequenceClassification, "num_labels": 3}


@pytest.mark.parametrize("pad", [0, 1, 7, None], ids="pad{}".format)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score(side: str, pad: int | None, kind: str, build: Build, tokens: Draw) -> None:
    # 1 ends every text here, and 7 is a word: where they also pad, only the mask tells where a text ends
    model, lengths = build(kind, **HEAD, pad_token_id=pad), [9, 4, 6]
    texts = [torch.cat((tokens(1, length - 1, seed=length), torch.tensor([[1]])), dim=1) for length in lengths]
    ids, mask = torch.full((3, 9), 7 if pad is None else pad), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(9 - lengths[row], 9) if side == "left" else slice(0, lengths[row])
        ids[row, place], mask[row, place] = text, 1
    # rotary positions are relative; a left-padded row needs none of its own
    with torch.no_grad():
        alone = torch.cat([model(text, attention_mask=torch.ones_like(text)).logits for text in texts])
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, alone, atol=2e-4, rtol=2e-4)
        embeds = model.get_input_embeddings()(ids)
        by_embeddings = model(inputs_embeds=embeds, attention_mask=mask).logits
        torch.testing.assert_close(by_embeddings, alone, atol=2e-4, rtol=2e-4)
        if pad == 0 and side == "right":
            torch.testing.assert_close(model(ids).logits, alone, atol=2e-4, rtol=2e-4)


def test_sequences_whose_ends_are_unknown_are_refused(build: Build, tokens: Draw) -> None:
    model = build(**HEAD, pad_token_id=None)
    assert model(tokens(1, 5)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="attention_mask: needed to tell where 2 sequences end") as caught:
        model(tokens(2, 5))
    assert "\n" not in str(caught.value)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="a sequence of padding alone has no last token") as caught:
        model(tokens(2, 3), attention_mask=mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0, 2]), torch.nn.functional.cross_entropy),
        (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), torch.nn.functional.binary_cross_entropy_with_logits),
    ],
    ids=["one of many", "several of many"],
)
def test_labels_give_the_loss_of_their_kind(
    labels: torch.Tensor, expected: Callable, build: Build, tokens: Draw
) -> None:
    result = build(**HEAD)(tokens(2, 6), labels=labels)
    torch.testing.assert_close(result.loss, expected(result.logits, labels))
    assert returned_cache(result) is None


def test_a_number_is_regressed_on(build: Build, tokens: Draw) -> None:
    result = build(model_class=MesaForSequenceClassification, num_labels=1)(tokens(2, 6), labels=torch.tensor([0.5, 2]))
    torch.testing.assert_close(result.loss, (result.logits[:, 0] - torch.tensor([0.5, 2])).square().mean())


def test_a_language_model_becomes_a_classifier(kind: str, build: Build, tokens: Draw, tmp_path: Path) -> None:
    language, ids = build(kind, model_class=MesaForCausalLM), tokens(2, 6)
    language.save_pretrained(tmp_path / "language")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "language", num_labels=4).train()
    assert type(model) is MesaForSequenceClassification
    assert torch.equal(model.model.embed_tokens.weight, language.model.embed_tokens.weight)
    model(ids, labels=torch.tensor([3, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)

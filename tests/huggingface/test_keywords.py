"""What a forward pass takes as keywords: a cache under either of its names, transformers' own, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import SPECIAL, TINY
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mesalm import MesaForCausalLM, MesaForSequenceClassification, MesaModel, MesaRegressor, RegressorConfig
from mesalm.model.cache_mesa import CACHE, cache_name, returned_cache
from mesalm.tuning.soft_prefix import PrefixedModel

Build = Callable[..., MesaForCausalLM]
Draw = Callable[..., torch.Tensor]


def test_logits_of_generate_equal_those_of_one_forward_pass(kind: str, build: Build, tokens: Draw) -> None:
    # tokens alone would agree by chance; every logit shows whether the cache was read
    model = build(kind)
    result = model.generate(
        tokens(2, 9), max_new_tokens=7, min_new_tokens=7, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    with torch.no_grad():
        whole = model(result.sequences).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(result.logits, dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("model_class", [MesaModel, MesaForCausalLM, MesaForSequenceClassification, PrefixedModel])
def test_a_cache_is_read_and_written_under_either_name(
    name: str, model_class: type, kind: str, build: Build, tokens: Draw
) -> None:
    if model_class is PrefixedModel:
        model: nn.Module = PrefixedModel(build(kind), torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    else:
        model = build(kind, model_class=model_class)
    ids, cache = tokens(1, 12), DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(ids)[0][:, -1]
        if model_class is PrefixedModel:
            cache = getattr(model(ids[:, :7], use_cache=True), CACHE)
        else:
            model(ids[:, :7], use_cache=True, **{name: cache})
        found = model(ids[:, 7:], use_cache=True, **{name: cache})
    assert getattr(found, CACHE) is cache
    torch.testing.assert_close(found[0][:, -1], whole, atol=1e-4, rtol=1e-4)


def test_a_cache_under_both_names_is_refused(build: Build, tokens: Draw) -> None:
    model = build("mesa")
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=r"^cache: .* past_key_values; give only one of them$"):
        model(tokens(1, 4), cache=cache, past_key_values=cache)


def test_a_cache_of_keys_alone_is_refused_where_layers_have_states(build: Build, tokens: Draw) -> None:
    softmax = build("softmax")
    cache = DynamicCache(config=softmax.config)
    softmax(tokens(1, 4), cache=cache)
    for kind in ("mesa", "hybrid", "linear"):
        with pytest.raises(ValueError, match=r"^cache: layer 0 holds keys and values.*config=model.config"):
            build(kind)(tokens(1, 4), cache=cache)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_another_s_model_gets_a_cache_by_the_name_it_asks_for(name: str, tokens: Draw) -> None:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=61, **SPECIAL, **TINY))
    prefixed, ids = PrefixedModel(llama, torch.randn(3, 32)), tokens(1, 9)
    with torch.no_grad():
        first = prefixed(ids[:, :4], use_cache=True)
        rest = prefixed(ids[:, 4:], use_cache=True, **{name: returned_cache(first)})
        torch.testing.assert_close(rest.logits, prefixed(ids).logits[:, 4:])
    assert cache_name(llama) == CACHE


def modules(build: Build) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return every module with a forward pass of keywords, and an input of it."""
    regressor = MesaRegressor(RegressorConfig(input_size=4, **TINY))
    model, ids, hidden = build("hybrid"), torch.tensor([[3, 4, 5]]), torch.randn(1, 3, 32)
    return {
        "MesaModel": (model.model, ids),
        "MesaForCausalLM": (model, ids),
        "MesaForSequenceClassification": (build("hybrid", MesaForSequenceClassification), ids),
        "MesaRegressor": (regressor, torch.randn(1, 3, 4)),
        "PrefixedModel": (PrefixedModel(model, torch.randn(2, 32)), ids),
        "MesaBlock": (build("mesa").model.layers[0], hidden),
        "MesaMixer": (build("mesa").model.layers[0].mixer, hidden),
        "LinearMixer": (build("linear").model.layers[0].mixer, hidden),
        "SoftmaxMixer": (build("softmax").model.layers[0].mixer, hidden),
    }


@pytest.mark.parametrize("name", [
    *("MesaModel", "MesaForCausalLM", "MesaForSequenceClassification", "MesaRegressor", "PrefixedModel"),
    *("MesaBlock", "MesaMixer", "LinearMixer", "SoftmaxMixer"),
])  # fmt: skip
@pytest.mark.parametrize("keyword", ["cahce", "token_type_ids", "output_router_logits", "no_such_thing"])
def test_an_unknown_keyword_is_refused_by_name(name: str, keyword: str, build: Build) -> None:
    module, given = modules(build)[name]
    module(given)
    with pytest.raises(TypeError, match=keyword) as caught:
        module(given, **{keyword: None})
    assert "\n" not in str(caught.value)


def test_a_misspelt_keyword_is_told_the_right_one(build: Build, tokens: Draw) -> None:
    model = build("mesa")
    with pytest.raises(
        TypeError, match=r"^MesaForCausalLM.forward: there is no argument 'lables'; did you mean 'labels'\?$"
    ):
        model(tokens(1, 4), lables=tokens(1, 4))
    with pytest.raises(TypeError, match=r"^MesaModel.forward: .* 'attn_mask'; did you mean 'attention_mask'\?$"):
        model.model(tokens(1, 4), attn_mask=None)


def test_keywords_of_the_loss_reach_it(build: Build, tokens: Draw) -> None:
    model, ids = build("mesa"), tokens(2, 9)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
        shifted = torch.cat((ids[:, 1:], torch.full((2, 1), 5)), dim=1)
        torch.testing.assert_close(model(ids, labels=ids, num_items_in_batch=5).loss, loss / 5)
        without = model(ids, shift_labels=shifted, ignore_index=5)
        kept = ids[:, 1:].flatten() != 5
        expected = torch.nn.functional.cross_entropy(logits[kept], ids[:, 1:].flatten()[kept])
    torch.testing.assert_close(without.loss, expected)


def test_a_softmax_model_reads_later_tokens_if_asked_and_recurrent_ones_refuse(
    kind: str, build: Build, tokens: Draw
) -> None:
    model, ids = build(kind), tokens(1, 6)
    other = torch.cat((ids[:, :-1], (ids[:, -1:] - 1) % 50 + 3), dim=1)
    if kind == "softmax":
        with torch.no_grad():
            changed = model(ids, is_causal=False).logits[:, 0] - model(other, is_causal=False).logits[:, 0]
        assert changed.abs().max() > 1e-3
        return
    with pytest.raises(ValueError, match=r"^is_causal: recurrent layers"):
        model(ids, is_causal=False)


def test_limits_of_documents_need_positions(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(1, 6)
    limits = {"cu_seq_lens_q": torch.tensor([0, 4, 6]), "max_length_q": 4}
    with pytest.raises(ValueError, match=r"^cu_seq_lens_q: documents are separated by position_ids"):
        model(ids, **limits)
    with torch.no_grad():
        found = model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1]]), **limits).logits[:, 4:]
        torch.testing.assert_close(found, model(ids[:, 4:]).logits, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_does_not_write_a_cache_twice(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(1, 8)
    expected = model(ids).logits[:, 5:]
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=r"^cache: gradient checkpointing"):
        model(ids[:, :5], cache=cache)
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
        found = model(ids[:, 5:], cache=cache).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

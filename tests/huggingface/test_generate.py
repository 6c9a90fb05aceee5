"""What `generate` offers beside greedy search (tests/model/test_generation.py), on every kind of model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    DynamicCache,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from mesalm import MesaForCausalLM
from mesalm.model.cache_mesa import CACHE, returned_cache

Build = Callable[..., MesaForCausalLM]
Draw = Callable[..., torch.Tensor]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def left_padded(draw: Draw, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of these lengths and their mask; the padding is an ordinary token, so that only the mask hides it."""
    ids = torch.full((len(lengths), max(lengths)), 7)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, max(lengths) - length :] = draw(1, length, seed=length)
        mask[row, max(lengths) - length :] = 1
    return ids, mask


def test_beams_of_a_left_padded_batch_equal_each_row_alone(kind: str, build: Build, tokens: Draw) -> None:
    model, lengths = build(kind), [4, 9, 6]
    ids, mask = left_padded(tokens, lengths)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(ids, attention_mask=mask, **options)[:, 9:].view(3, 2, 8)
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, 9 - length :], **options)[:, length:]
        assert torch.equal(together[row], alone)


def test_sampling_in_a_padded_batch_draws_from_each_row_s_distribution(kind: str, build: Build, tokens: Draw) -> None:
    model, lengths = build(kind), [5, 9]
    ids, mask = left_padded(tokens, lengths)
    options = {"do_sample": True, "top_p": 0.9, "max_new_tokens": 6, "output_logits": True}
    torch.manual_seed(3)
    result = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    for row, length in enumerate(lengths):
        sequence = result.sequences[row : row + 1, 9 - length :]
        with torch.no_grad():
            expected = model(sequence).logits[0, length - 1 : -1]
        found = torch.stack([step[row] for step in result.logits])
        torch.testing.assert_close(found[: len(expected)], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_prompt_read_in_pieces_gives_the_same(size: int, cache: str, kind: str, build: Build, tokens: Draw) -> None:
    model = build(kind)
    # pieces of the second row are padding alone
    ids, mask = left_padded(tokens, [13, 5])
    whole = model.generate(ids, attention_mask=mask, **GREEDY)
    options = {**GREEDY, "prefill_chunk_size": size, "cache_implementation": cache}
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), whole)


def test_embeddings_instead_of_tokens_give_the_same(kind: str, build: Build, tokens: Draw) -> None:
    model = build(kind)
    ids, mask = left_padded(tokens, [4, 7])
    embeds = model.get_input_embeddings()(ids)
    found = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **GREEDY)[:, 7:])


@pytest.mark.parametrize("conv_size", [None, 0, 4], ids="conv{}".format)
def test_a_static_cache_gives_the_same(kind: str, conv_size: int | None, build: Build, tokens: Draw) -> None:
    model = build(kind, conv_size=conv_size)
    ids, mask = left_padded(tokens, [4, 7])
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    for _ in range(2):  # the second call takes up what the first left behind
        result = model.generate(
            ids, attention_mask=mask, cache_implementation="static", return_dict_in_generate=True, **GREEDY
        )
        assert torch.equal(result.sequences, expected)
        cache = returned_cache(result)
        assert isinstance(cache, StaticCache)
        assert int(cache.get_seq_length()) == 14


def test_plain_generation_never_compiles(kind: str, build: Build, tokens: Draw) -> None:
    # `generate` compiles on a GPU by itself when a cache is called compileable; states of constant size look so
    model = build(kind)
    for given in ({}, {CACHE: DynamicCache(config=model.config)}):
        result = model.generate(tokens(1, 5), return_dict_in_generate=True, **given, **GREEDY)
        cache = returned_cache(result)
        assert isinstance(cache, DynamicCache)
        assert not cache.is_compileable or type(cache) is DynamicCache
        assert cache.get_seq_length() == 12


@pytest.mark.parametrize("whole", [True, False], ids=["all-ids", "new-ids"])
@pytest.mark.parametrize("given", ["dynamic", "static", "returned"])
def test_a_conversation_goes_on_in_the_cache_given(
    given: str, whole: bool, kind: str, build: Build, tokens: Draw
) -> None:
    model = build(kind)
    ids, mask = left_padded(tokens, [4, 6])
    # logits, for tiny models soon write the same tokens whatever they have read
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True, "disable_compile": True}
    made = {"dynamic": DynamicCache(config=model.config), "static": StaticCache(model.config, max_cache_len=40)}
    first = model.generate(ids, attention_mask=mask, **{CACHE: made.get(given)}, **options)
    cache = returned_cache(first) if given == "returned" else made[given]
    longer = torch.cat((first.sequences, tokens(2, 4, seed=2)), dim=1)
    mask = torch.cat((mask, torch.ones_like(longer[:, ids.shape[1] :])), dim=1)
    again = longer if whole else longer[:, int(returned_cache(first).get_seq_length()) :]
    found = model.generate(again, attention_mask=mask, **{CACHE: cache}, **options).logits
    wanted = model.generate(longer, attention_mask=mask, **options).logits
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [0, 2])
def test_a_cache_that_holds_the_whole_prompt_is_refused(more: int, kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(2, 9)
    for given in (
        {"input_ids": ids[:, : 9 - more]},
        {"inputs_embeds": model.get_input_embeddings()(ids[:, : 9 - more])},
    ):
        cache = DynamicCache(config=model.config)
        model(ids, cache=cache, use_cache=True)
        with pytest.raises(ValueError, match="it already holds all tokens given; fill it with all but") as caught:
            model.generate(**given, **{CACHE: cache}, **GREEDY)
        assert "\n" not in str(caught.value)


class AfterToken(StoppingCriteria):
    """Stop a row at a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return input_ids[:, -1] == self.token


def test_rows_stop_by_themselves(kind: str, build: Build, tokens: Draw) -> None:
    model = build(kind)
    ids = tokens(3, 6)
    free = model.generate(ids, **GREEDY)
    token = int(free[0, 8])  # the third new token of the first row
    found = model.generate(
        ids, max_new_tokens=8, do_sample=False, stopping_criteria=StoppingCriteriaList([AfterToken(token)])
    )
    by_end = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=token)
    assert torch.equal(found, by_end)
    for row in range(3):
        new = free[row, 6:].tolist()
        stop = new.index(token) + 1 if token in new else 8
        assert found[row, 6 : 6 + stop].tolist() == new[:stop]
        assert set(found[row, 6 + stop :].tolist()) <= {0}


def test_text_streams_as_it_comes(kind: str, build: Build, tokenizer: object) -> None:
    model = build(kind, vocab_size=258)
    inputs = tokenizer("the cat", return_tensors="pt", add_special_tokens=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = model.generate(**inputs, streamer=streamer, **GREEDY)
    assert "".join(streamer) == tokenizer.decode(output[0, inputs.input_ids.shape[1] :])


def test_logits_to_keep_takes_a_number_or_positions(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(2, 9)
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.equal(model(ids, logits_to_keep=3).logits, whole[:, -3:])
        assert torch.equal(model(ids, logits_to_keep=slice(2, 5)).logits, whole[:, 2:5])
        places = torch.tensor([0, 4, 7])
        torch.testing.assert_close(model(ids, logits_to_keep=places).logits, whole[:, places])


def test_a_softmax_model_can_be_assisted_and_recurrent_ones_say_why_not(kind: str, build: Build, tokens: Draw) -> None:
    model, assistant, ids = build(kind), build("softmax", num_hidden_layers=1), tokens(1, 7)
    if kind == "softmax":
        assert torch.equal(model.generate(ids, assistant_model=assistant, **GREEDY), model.generate(ids, **GREEDY))
    else:
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(ids, assistant_model=assistant, **GREEDY)
        with pytest.raises(ValueError, match=r"assistant_model: .*mesalm.hub.speculate.draft_model") as caught:
            assistant.generate(ids, assistant_model=model, **GREEDY)
        assert "\n" not in str(caught.value)


def test_what_recurrent_layers_cannot_use_is_refused_in_one_line(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(1, 5)
    square = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    plain = model(ids).logits
    if kind == "softmax":
        torch.testing.assert_close(model(ids, attention_mask=square).logits, plain)
        torch.testing.assert_close(model(ids, cache=DynamicCache(), use_cache=True).logits, plain)
        return
    with pytest.raises(ValueError, match="attention_mask: has 4 dimensions") as caught:
        model(ids, attention_mask=square)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"create it with DynamicCache\(config=model.config\)") as caught:
        model(ids, cache=DynamicCache(), use_cache=True)
    assert "\n" not in str(caught.value)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with pytest.raises(ValueError, match="cache: layer 0 has a state, from which crop cannot") as caught:
        model(ids, cache=cache, use_cache=True)
    assert "\n" not in str(caught.value)


def test_stop_strings_end_a_text(kind: str, build: Build, tokens: Draw, tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = build(kind, vocab_size=258), tokens(1, 7)
    letters = tokenizer("abcdefgh", add_special_tokens=False).input_ids
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": sorted({*range(258)} - {*letters})}
    usual = model.generate(ids, **options)
    fifth = tokenizer.decode(usual[0, 11:12])
    stopped = model.generate(ids, stop_strings=[fifth], tokenizer=tokenizer, **options)
    assert 7 < stopped.shape[1] <= 12
    assert torch.equal(stopped, usual[:, : stopped.shape[1]])

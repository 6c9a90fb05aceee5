"""What a model says of tokens, against a direct full forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mesa_eval.measures.copying import score_copying
from mesa_eval.reading.model_source import tokenizer_fingerprint
from mesa_eval.reading.scoring import Scorer


def direct(model, row: list[int]) -> np.ndarray:
    """Return log P of tokens 1 ... of one row from one forward pass in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row[:-1]])).logits[0].double()
    return logits.log_softmax(-1)[torch.arange(len(row) - 1), torch.tensor(row[1:])].numpy()


def rows_of(lengths: list[int], vocabulary: int = 258) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, vocabulary, length).tolist() for length in lengths]


@pytest.mark.parametrize("batch_tokens", [1, 37, 10_000])
def test_mixed_lengths_agree_with_a_direct_forward(make, tokenizer, batch_tokens: int) -> None:
    model = make.llama(258, seed=1)
    scorer = Scorer(model, tokenizer, batch_tokens=batch_tokens, quiet=True)
    rows = rows_of([3, 40, 17, 2, 40, 9])
    firsts = [1, 30, 1, 1, 39, 5]
    scores = scorer.token_scores(rows, firsts)
    for row, first, (nats, hits, _) in zip(rows, firsts, scores, strict=True):
        assert len(nats) == len(hits) == len(row) - first
        np.testing.assert_allclose(nats, direct(model, row)[first - 1 :], atol=2e-5)
    assert scorer.tokens_run == sum(len(row) - 1 for row in rows)


def test_hits_are_the_likeliest_tokens(make, tokenizer) -> None:
    model = make.llama(258, seed=2)
    row = rows_of([20])[0]
    with torch.no_grad():
        best = model(input_ids=torch.tensor([row])).logits[0].argmax(-1).tolist()
    row[10] = best[9]
    ((_, hits, likeliest),) = Scorer(model, tokenizer, quiet=True).token_scores([row[:11]])
    assert hits[-1]
    assert likeliest.tolist() == best[:10]
    assert hits.sum() == sum(best[i] == row[i + 1] for i in range(10))


def test_one_token_rows_have_nothing_to_score(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=1), tokenizer, quiet=True)
    ((nats, hits, best),) = scorer.token_scores([[5]])
    assert len(nats) == len(hits) == len(best) == 0
    with pytest.raises(ValueError, match="at least 1"):
        scorer.token_scores([[5, 6]], [0])


def test_a_model_with_nan_is_refused(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.full((258, 258), float("nan"))), tokenizer, quiet=True)
    with pytest.raises(ValueError, match="not finite"):
        scorer.token_scores([[2, 3, 4]])


def test_a_token_that_the_model_lacks_is_refused(make) -> None:
    """Also where only the padding is such a token, which the scores do not depend on."""
    tokenizer = make.tokenizer(merges_from="ab " * 50, size=259)
    whole, smaller = (Scorer(make.llama(size, seed=1), tokenizer, quiet=True) for size in (259, 258))
    assert tokenizer.get_vocab()["ab"] == 258
    one_line = "its tokenizer gives token 258, but the model has 258 tokens"
    for ask in (lambda: smaller.token_scores([[2, 258]]), lambda: smaller.generate(["ab"], 1)):
        with pytest.raises(ValueError, match=one_line):
            ask()
    score_copying(smaller, 64, 8, 0)  # its sequences are of tokens that the model has
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    padded = Scorer(make.llama(259, seed=1), tokenizer, quiet=True)
    rows = rows_of([9, 3], 259)
    for (found, *_), (expected, *_) in zip(padded.token_scores(rows), whole.token_scores(rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    tokenizer.bos_token = "<|new|>"
    with pytest.raises(ValueError, match="gives token 259, but the model has 259 tokens"):
        Scorer(make.llama(259, seed=1), tokenizer, quiet=True)


def test_pairs_are_encoded_together_where_the_context_stays_a_prefix(make) -> None:
    tokenizer = make.tokenizer(merges_from="ab " * 50 + "abc " * 30, size=270)
    scorer = Scorer(make.llama(len(tokenizer), seed=1), tokenizer, quiet=True)
    stable, crossed = scorer.encode_pairs([("abc", " abc"), ("a", "bc")])
    assert stable.tokens == [0, *scorer.encode("abc abc")]
    assert stable.start == 1 + len(scorer.encode("abc"))
    assert crossed.tokens != [0, *scorer.encode("abc")]
    assert crossed.tokens == [0, *scorer.encode("a"), *scorer.encode("bc")]
    assert crossed.start == 2


def test_likelihood_is_the_sum_over_the_continuation(make, tokenizer) -> None:
    model = make.llama(258, seed=3)
    scorer = Scorer(model, tokenizer, quiet=True)
    pairs = scorer.encode_pairs([("one two", " three"), ("", "x")])
    found = scorer.likelihoods(pairs)
    for pair, likelihood in zip(pairs, found, strict=True):
        assert likelihood.nats == pytest.approx(direct(model, pair.tokens)[pair.start - 1 :].sum(), abs=1e-4)
    with pytest.raises(ValueError, match="cannot score"):
        scorer.encode_pairs([("context", "")])


def test_greedy_generation_is_what_the_greedy_mark_means(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=5), tokenizer, quiet=True)
    start = torch.tensor([scorer.start() + scorer.encode("go on: ")])
    ids = scorer.model.generate(start, do_sample=False, max_new_tokens=1, attention_mask=torch.ones_like(start))
    (text,) = scorer.generate(["go on: "], 1, stop="\0")
    assert text == tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True)
    row = ids[0].tolist()
    ((_, hits, _),) = scorer.token_scores([row], [start.shape[1]])
    assert hits.all()


def test_penalties_of_a_model_do_not_change_what_it_finds_likeliest(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=5), tokenizer, quiet=True)
    prompts = ["go on: ", "once"]
    plain = scorer.generate(prompts, 12, stop="\0")
    own = scorer.model.generation_config
    own.update(repetition_penalty=1.5, no_repeat_ngram_size=1, suppress_tokens=scorer.encode(plain[0]))
    assert scorer.generate(prompts, 12, stop="\0") == plain
    assert scorer.model.generation_config is own


def test_a_special_token_spelt_out_is_plain_text(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=1), tokenizer, quiet=True)
    assert 0 not in scorer.encode("a <|endoftext|> b")


def test_fingerprints_tell_weights_and_tokenizers_apart(make, tokenizer) -> None:
    first, same, other = (Scorer(make.llama(258, seed), tokenizer, quiet=True).fingerprint() for seed in (1, 1, 2))
    assert first == same != other
    merged = make.tokenizer(merges_from="abc " * 30, size=262)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make.tokenizer())
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(merged)


def test_state_of_softmax_grows_with_the_text(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=1), tokenizer, quiet=True)
    # two layers, one key-value head of size 16, keys and values
    assert scorer.state_numbers(10) == 2 * 2 * 16 * 10
    assert scorer.state_numbers(20) == 2 * 2 * 16 * 20

"""Speculative decoding writes what greedy decoding writes, in fewer passes, whatever the draft is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model

from mesalm.hub.speculate import BEHIND, draft_model, prompt_lookup, speculate
from mesalm.model.cache_mesa import CACHE, returned_cache
from mesalm.model.mixers import MIXERS

KINDS = [*MIXERS, "mesa+softmax+delta+window"]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 70}


def build(kind: str) -> Any:
    names = kind.split("+")
    return tiny_model(mixers=names, num_hidden_layers=max(2, len(names)), window=9, max_position_embeddings=256)


def prompt() -> torch.Tensor:
    """Return 5 random tokens, three times, so that there is something to look up."""
    return torch.randint(2, 61, (1, 5), generator=torch.Generator().manual_seed(1)).repeat(1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_any_draft_leaves_the_greedy_text(kind: str) -> None:
    model, ids = build(kind), prompt()
    wanted = model.generate(ids, **GREEDY)
    lucky = wanted[0].clone()
    lucky[20::7] = (lucky[20::7] + 1) % 61  # now right, now wrong

    def foreseen(seen: torch.Tensor) -> torch.Tensor:
        return lucky[seen.shape[1] : seen.shape[1] + 6]

    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    for draft in (foreseen, draft_model(build("linear"), 3)):
        passes.clear()
        found = model.generate(ids, custom_generate=speculate, draft=draft, **GREEDY)
        assert torch.equal(found, wanted)
        assert len(passes) < 70 or draft is not foreseen


def test_a_right_draft_saves_passes_and_processors_and_ends_are_kept() -> None:
    model, ids = build("mesa"), prompt()
    options = {**GREEDY, "repetition_penalty": 1.3}
    wanted = model.generate(ids, **options)
    end = int(wanted[0, 50])
    passes: list[int] = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    draft = lambda seen: wanted[0, seen.shape[1] : seen.shape[1] + 9]  # noqa: E731
    assert torch.equal(model.generate(ids, custom_generate=speculate, draft=draft, **options), wanted)
    assert len(passes) == 8  # the prompt, then ten tokens each
    hook.remove()
    for other in (None, prompt_lookup(4, 1), draft_model(model)):
        assert torch.equal(model.generate(ids, custom_generate=speculate, draft=other, **options), wanted)
    options["eos_token_id"] = end
    assert torch.equal(
        model.generate(ids, custom_generate=speculate, draft=draft, **options), model.generate(ids, **options)
    )


@pytest.mark.parametrize("kind", ["mesa", "softmax"])
def test_the_prompt_is_read_once_even_if_no_draft_is_right(kind: str) -> None:
    model, ids = build(kind), prompt().repeat(1, 8)
    wanted = model.generate(ids, **GREEDY)
    lengths: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
    wrong = lambda seen: (wanted[0, seen.shape[1] : seen.shape[1] + 2] + 1) % 61  # noqa: E731
    assert torch.equal(model.generate(ids, custom_generate=speculate, draft=wrong, **GREEDY), wanted)
    assert lengths[0] == ids.shape[1]
    assert max(lengths[1:]) <= BEHIND + 2


def test_a_draft_model_can_begin_anew() -> None:
    draft = draft_model(build("delta"), 4)
    first = draft(prompt())
    draft(torch.cat((prompt() + 1, prompt()), dim=1))
    assert torch.equal(draft(prompt()), first)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"num_beams": 2}, "num_beams"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"use_cache": False}, "use_cache"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"attention_mask": torch.tensor([[0] + [1] * 14])}, "attention_mask"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: not supported by speculative decoding") as caught:
        build("mesa").generate(prompt(), custom_generate=speculate, **{**GREEDY, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["assistant_model", "streamer"])
def test_what_generate_does_not_pass_on_is_refused(name: str) -> None:
    model = build("softmax")
    with pytest.raises(ValueError, match=f"^{name}: is not passed on to a function given as custom_generate; "):
        model.generate(prompt(), custom_generate=speculate, **{name: model}, **GREEDY)


def test_rows_and_caches_are_refused() -> None:
    model, ids = build("mesa"), prompt()
    with pytest.raises(ValueError, match=r"^input_ids: "):
        model.generate(ids.repeat(2, 1), custom_generate=speculate, **GREEDY)
    with torch.no_grad():
        cache = returned_cache(model(ids[:, :-1], use_cache=True))
    with pytest.raises(ValueError, match=f"^{CACHE}: "):
        model.generate(ids, custom_generate=speculate, **{CACHE: cache}, **GREEDY)

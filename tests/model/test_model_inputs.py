"""What a forward pass is given: ids, padding anywhere, documents in one row, masks ready made; eager and compiled."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny import PADDED, SPECIAL, biased_model, draw_tokens
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from mesalm import MesaForCausalLM, MesaForSequenceClassification
from mesalm.model.cache_mesa import CACHE, returned_cache
from mesalm.model.model_inputs import find_segments

KINDS = {
    "mesa": {"mixers": "mesa"},
    "linear": {"mixers": "linear"},
    "ungated": {"mixers": ["mesa", "linear"], "gates": False, "conv_size": 0},
    "softmax": {"mixers": "softmax"},
    "hybrid": {"mixers": ["mesa", "softmax"], "conv_size": 3},
}
CLASSIFIER = MesaForSequenceClassification
NEAR = {"atol": 1e-4, "rtol": 1e-4}
WIDTH = 13


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build(kind: str, model_class: Any = MesaForCausalLM, **changes: Any) -> Any:
    return biased_model(model_class, **{**SPECIAL, **KINDS[kind], **changes}).requires_grad_(False)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def assert_rows_alone(model: Any, logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
    for row, real in enumerate(mask.bool()):
        torch.testing.assert_close(logits[row, real], model(ids[row, real][None]).logits[0], **NEAR)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_of_any_dtype_means_the_same(dtype: torch.dtype, kind: str) -> None:
    model, ids = build(kind), draw_tokens(4, WIDTH)
    options = {"position_ids": positions_of(PADDED), "use_cache": False}
    expected = model(ids, attention_mask=PADDED, **options).logits
    assert torch.equal(model(ids, attention_mask=PADDED.to(dtype), **options).logits, expected)


def test_a_turn_of_one_token_for_one_row_leaves_the_other_as_it_was(kind: str) -> None:
    model, ids = build(kind), draw_tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5] = 0
    positions = positions_of(mask)
    cache, logits = StaticCache(config=model.config, max_cache_len=7), []
    for start, end in ((0, 5), (5, 6), (6, 7)):
        given = model.create_masks_for_generate(  # as generate does it for a cache that can be compiled
            config=model.config,
            inputs_embeds=torch.empty(2, end - start, 0),
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            **{CACHE: cache},
        )
        options = {"position_ids": positions[:, start:end], "cache": cache, "use_cache": True}
        logits.append(model(ids[:, start:end], attention_mask=given, **options).logits)
    assert_rows_alone(model, torch.cat(logits, dim=1), ids, mask)


def packed(left: int = 0, right: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[slice]]]:
    """Return ids, positions and mask of two rows of documents with padding before and behind, and where they lie."""
    lengths = [[1, 9, 3, 5], [6, 2, 10]]
    ids, positions, mask, places = draw_tokens(2, left + 18 + right), [], [], []
    for row in lengths:
        starts = [left + sum(row[:index]) for index in range(len(row))]
        places.append([slice(start, start + length) for start, length in zip(starts, row, strict=True)])
        parts = [torch.arange(length) for length in row]
        positions.append(torch.cat([torch.zeros(left), *parts, torch.zeros(right)]).long())
        mask.append(torch.cat([torch.zeros(left), torch.ones(18), torch.zeros(right)]).long())
    return ids, torch.stack(positions), torch.stack(mask), places


def assert_documents_alone(model: Any, logits: torch.Tensor, ids: torch.Tensor, places: list[list[slice]]) -> None:
    for row, documents in enumerate(places):
        for place in documents:
            alone = model(ids[row : row + 1, place], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, place], alone, **NEAR)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [(0, 0), (0, 4), (3, 0), (2, 5)], ids=str)
def test_documents_beside_a_mask_are_as_they_are_alone(padding: tuple[int, int], attention: str, kind: str) -> None:
    model = build(kind)
    model.set_attn_implementation(attention)
    ids, positions, mask, places = packed(*padding)
    outputs = model(ids, position_ids=positions, attention_mask=mask, use_cache=True)
    assert_documents_alone(model, outputs.logits, ids, places)
    assert returned_cache(outputs) is None
    ready = {"linear_attention": mask.bool(), "full_attention": None}
    if padding == (0, 0):
        logits = model(ids, position_ids=positions, attention_mask=ready).logits
        assert_documents_alone(model, logits, ids, places)


def test_a_hole_within_a_document_is_read_over(kind: str) -> None:
    model, ids = build(kind), draw_tokens(1, 12)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1]])
    positions = torch.tensor([[0, 1, 0, 0, 2, 3, 0, 1, 2, 0, 3, 4]])
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for place in ([0, 1, 4, 5], [6, 7, 8, 10, 11]):
        torch.testing.assert_close(logits[:, place], model(ids[:, place], use_cache=False).logits, **NEAR)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_convolution_may_be_wider_than_a_row_of_documents(length: int, kind: str) -> None:
    model, ids = build(kind, conv_size=6), draw_tokens(1, length)
    positions = torch.tensor([[0, *range(length - 1)]])
    logits = model(ids, position_ids=positions).logits
    assert_documents_alone(model, logits, ids, [[slice(0, 1), slice(1, length)]])


def test_documents_are_found_as_a_loop_finds_them() -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 17):
        positions = torch.randint(0, 4, (40, length), generator=generator)
        mask = torch.rand(40, length, generator=generator) > 0.3
        found = find_segments(positions, mask)
        expected = torch.zeros_like(positions)
        for row in range(40):
            number, before = 0, None
            for place in range(length):
                if mask[row, place]:
                    if before is not None:
                        step = int(positions[row, place] - positions[row, before])
                        number += step not in (1, place - before)
                    before = place
                expected[row, place] = number
        assert torch.equal(expected if found is None else found, expected)
    assert find_segments(torch.arange(5)[None] + 7, None) is None


def fake_flash(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **options: Any
) -> Any:
    """Attend as flash attention does for sequences laid end to end, whatever rows they stood in."""
    assert attention_mask is None
    bounds = options["cu_seq_lens_q"]
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, options["cu_seq_lens_k"])
    assert options["max_length_q"] == options["max_length_k"] == int(bounds.diff().max())
    flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    outputs = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = [part[start:end].transpose(0, 1)[None] for part in flat]
        causal = torch.full((end - start, end - start), float("-inf")).triu(1)
        outputs.append(eager_attention_forward(module, *rows, causal, scaling=scaling)[0][0])
    return torch.cat(outputs).view(query.shape[0], query.shape[2], *query.shape[1::2]), None


@pytest.mark.parametrize("name", ["softmax", "hybrid"])
def test_flash_attention_is_told_the_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    ids, positions, mask, places = packed()
    expected = model(ids, position_ids=positions).logits
    assert_documents_alone(model, expected, ids, places)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", fake_flash)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    for given in (None, mask):
        logits = model(ids, position_ids=positions, attention_mask=given).logits
        torch.testing.assert_close(logits, expected, **NEAR)
    mask[:, 0] = 0
    with pytest.raises(ValueError, match="attention_mask: flash attention takes either padding or") as caught:
        model(ids, position_ids=positions, attention_mask=mask)
    assert "\n" not in str(caught.value)


def test_compiled_reads_masks_and_documents_as_eager_does() -> None:
    model = build("linear", mixers=["linear", "softmax"], conv_size=3)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids, positions, mask, places = packed(2, 3)
    for given in (mask, torch.ones_like(mask)):
        logits = compiled(ids, attention_mask=given, position_ids=positions, use_cache=False).logits
        if given is mask:
            assert_documents_alone(model, logits, ids, places)
        else:
            expected = model(ids, position_ids=positions, use_cache=False).logits
            torch.testing.assert_close(logits, expected, **NEAR)
    with pytest.raises(RuntimeError, match="attention_mask: must hold only 0"):
        compiled(ids, attention_mask=mask.cumsum(1), position_ids=positions, use_cache=False)


IDS = draw_tokens(2, 5)
REFUSED = {
    "document numbers as a mask": ({"attention_mask": [[1, 1, 2, 2, 2]] * 2}, "attention_mask: must hold only 0"),
    "additive mask": ({"attention_mask": [[-1e9, 0.0, 0.0, 0.0, 0.0]] * 2}, "attention_mask: must hold only 0"),
    "NaN in the mask": ({"attention_mask": [[float("nan"), 1, 1, 1, 1]] * 2}, "attention_mask: must hold only 0"),
    "mask too long": ({"attention_mask": [[1] * 7] * 2}, r"attention_mask: .*must be \[B, past \+ T\] = \[2, 5\]"),
    "mask too short": ({"attention_mask": [[1] * 3] * 2}, r"attention_mask: .*\[2, 3\], must be"),
    "mask of one row": ({"attention_mask": [[1] * 5]}, r"attention_mask: .*\[1, 5\], must be"),
    "mask of one dimension": ({"attention_mask": [1] * 5}, "attention_mask"),
    "mask of three dimensions": ({"attention_mask": [[[1] * 5]] * 2}, "attention_mask"),
    "positions of another length": ({"position_ids": [[0, 1, 2]] * 2}, r"position_ids: .*\[2, 3\], must be \[B, T\]"),
    "positions of one dimension": ({"position_ids": [0, 1, 2, 3, 4]}, r"position_ids: .*\[5\], must be \[B, T\]"),
    "positions of floats": ({"position_ids": [[0.0, 1, 2, 3, 4]]}, "position_ids: has dtype torch.float32"),
    "ids of one dimension": ({"input_ids": [3, 4, 5]}, r"input_ids: has shape \[3\], must be \[B, T\]"),
    "ids of three dimensions": ({"input_ids": [[[3, 4]]]}, r"input_ids: has shape \[1, 1, 2\], must be \[B, T\]"),
    "ids of floats": ({"input_ids": [[3.0, 4.0]]}, "input_ids: has dtype torch.float32, must be int64 or int32"),
    "ids past the vocabulary": ({"input_ids": [[3, 61]]}, "input_ids: 61 is not in the vocabulary.* 0 to 60"),
    "negative ids": ({"input_ids": [[3, -100]]}, "input_ids: -100 is not in the vocabulary"),
    "embeddings of another width": (
        {"input_ids": None, "inputs_embeds": [[[0.5] * 31] * 2]},
        r"inputs_embeds: has shape \[1, 2, 31\], must be \[B, T, 32\]",
    ),
    "embeddings of one row": (
        {"input_ids": None, "inputs_embeds": [[0.5] * 32] * 2},
        r"inputs_embeds: has shape \[2, 32\], must be \[B, T, 32\]",
    ),
}


def assert_refused(model: Any, message: str, **inputs: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(case: str) -> None:
    given, message = REFUSED[case]
    tensors = {name: None if value is None else torch.tensor(value) for name, value in given.items()}
    for kind, head in (("mesa", MesaForCausalLM), ("softmax", MesaForCausalLM), ("hybrid", CLASSIFIER)):
        assert_refused(build(kind, head), message, **{"input_ids": IDS, **tensors})


def test_lists_and_masks_that_leave_out_a_type_are_refused(kind: str) -> None:
    model = build(kind)
    assert_refused(model, "input_ids: is a list, must be a tensor", input_ids=[[3, 4]])
    assert_refused(model, "position_ids: is a list, must be a tensor", input_ids=IDS, position_ids=[[0, 1]])
    assert_refused(model, "attention_mask: is a list, must be a tensor", input_ids=IDS, attention_mask=[[1, 1]])
    needed = "full_attention" if kind in ("softmax", "hybrid") else "linear_attention"
    assert_refused(
        model, f"attention_mask: masks by layer type need an entry '{needed}'", input_ids=IDS, attention_mask={}
    )


def test_beside_a_cache_a_mask_is_of_the_past_too_and_no_document_begins(kind: str) -> None:
    model, ids = build(kind), draw_tokens(2, 9)
    for static in (False, True):
        cache = StaticCache(config=model.config, max_cache_len=16) if static else DynamicCache(config=model.config)
        model(ids[:, :5], cache=cache, use_cache=True)
        more = {"input_ids": ids[:, 5:], "cache": cache, "use_cache": True}
        assert_refused(model, r"must be \[B, past \+ T\] = \[2, 9\]", attention_mask=torch.ones(2, 4), **more)
        positions = torch.tensor([[5, 6, 0, 1]])
        assert_refused(model, "position_ids: they begin a new document within a row", position_ids=positions, **more)
        logits = model(attention_mask=torch.ones(2, 9), position_ids=torch.arange(5, 9)[None], **more).logits
        torch.testing.assert_close(logits, model(ids).logits[:, 5:], **NEAR)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_no_token_at_all_gives_empty_outputs(shape: tuple[int, int], kind: str) -> None:
    model, ids = build(kind), torch.zeros(shape, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mask in (None, torch.ones_like(ids)):
            for positions in (None, torch.arange(shape[1])[None]):
                logits = model(ids, attention_mask=mask, position_ids=positions).logits
                assert logits.shape == (*shape, 61)
    classifier = build(kind, CLASSIFIER, num_labels=3)
    if shape[1]:
        assert classifier(ids).logits.shape == (0, 3)
    else:
        assert_refused(classifier, "input_ids: . empty sequences have no last token to score", input_ids=ids)


def test_no_further_token_leaves_the_cache_as_it_was(kind: str) -> None:
    model, ids = build(kind), draw_tokens(2, 9)
    cache = DynamicCache(config=model.config)
    model(ids[:, :0], cache=cache, use_cache=True)
    model(ids[:, :5], cache=cache, use_cache=True)
    assert model(ids[:, :0], cache=cache, use_cache=True).logits.shape == (2, 0, 61)
    mask = torch.ones(2, 9)
    logits = model(ids[:, 5:], attention_mask=mask, cache=cache, use_cache=True).logits
    torch.testing.assert_close(logits, model(ids).logits[:, 5:], **NEAR)


def test_no_scored_token_is_as_in_transformers_own_models(kind: str) -> None:
    model, labels = build(kind), torch.full((2, 5), -100)
    assert torch.isnan(model(IDS, labels=labels).loss)
    assert model(IDS, labels=labels, num_items_in_batch=4).loss == 0

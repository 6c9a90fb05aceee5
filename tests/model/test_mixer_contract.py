"""What every mixer in the table must do, with and without its convolution."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import PADDED, SPECIAL, biased_model, draw_tokens, tiny_config, tiny_model
from transformers import DynamicCache

from mesalm import MesaForCausalLM
from mesalm.model.cache_mesa import returned_cache
from mesalm.model.layers import GateProjection
from mesalm.model.mixer_gated import RATE, sample_of_gates
from mesalm.model.mixer_mesa import MesaMixer
from mesalm.model.mixers import MIXERS

CASES = [
    *[pytest.param({"mixers": name, "conv_size": size}, id=f"{name}-conv{size}") for name in MIXERS for size in (0, 4)],
    pytest.param({"mixers": [*MIXERS], "num_hidden_layers": len(MIXERS)}, id="hybrid"),
    *[pytest.param({"mixers": name, "num_key_value_heads": 1}, id=f"{name}-grouped") for name in ("mesa", "delta")],
    pytest.param({"mixers": "window", "window": 9}, id="window-short"),
    pytest.param(
        {"mixers": "mesa", "gates": False, "conv_size": 0, "ridge_per_channel": False, "ridge_floor": 0.0},
        id="mesa-plain",
    ),
    pytest.param({"mixers": ["mesa", "linear"], "dpfp": 2}, id="dpfp"),
    pytest.param(
        {
            "mixers": [*MIXERS],
            "num_hidden_layers": len(MIXERS),
            "num_key_value_heads": 1,
            "value_head_dim": 24,
            "conv_size": 4,
            "conv_values": True,
            "forget_rate": True,
            "read_norm_eps": 1e-3,
        },
        id="values",
    ),
    pytest.param(
        {
            "mixers": [*MIXERS],
            "num_hidden_layers": len(MIXERS),
            "block_norms": False,
            "block_mlps": False,
            "read_norm": False,
            "residual_clip": 3.0,
        },
        id="bare-blocks",
    ),
]


build = partial(tiny_model, **SPECIAL)


@pytest.mark.parametrize("case", CASES)
def test_no_token_sees_a_later_one(case: dict) -> None:
    model, ids = build(**case), draw_tokens(1, 70)
    changed = ids.clone()
    changed[0, 66] = (changed[0, 66] + 1) % 59 + 2
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :66], after[:, :66], atol=1e-5, rtol=1e-5)
    assert (before[:, 66:] - after[:, 66:]).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_token_by_token_and_in_chunks_equals_the_whole(case: dict) -> None:
    model, ids = build(**case), draw_tokens(2, 19)
    with torch.no_grad():
        whole = model(ids).logits
        for cuts, cache in (
            ([1] * 19, None),
            ([7, 1, 1, 5, 1, 4], DynamicCache(config=model.config)),
            ([18, 1], DynamicCache(config=model.config)),
        ):
            parts = []
            for part in ids.split(cuts, dim=1):
                output = model(part, cache=cache, use_cache=True)
                cache = returned_cache(output)
                parts.append(output.logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-4, rtol=2e-4)


# recurrent ones alone: before release 5.24 transformers' reset leaves keys and values of zeros
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("conv_size", [0, 4])
@pytest.mark.parametrize("mixers", [name for name, row in MIXERS.items() if row.recurrent])
def test_a_state_is_empty_after_a_reset_and_takes_any_batch(mixers: str, conv_size: int, rows: int) -> None:
    model, ids = build(mixers=mixers, conv_size=conv_size), draw_tokens(rows, 13)
    cache, parts = DynamicCache(config=model.config), []
    with torch.no_grad():
        model(draw_tokens(2, 9, seed=5), cache=cache, use_cache=True)
        cache.reset()
        for part in ids.split([7, 1, 5], dim=1):
            parts.append(model(part, cache=cache, use_cache=True).logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_cache_holds_as_many_numbers_as_stated(case: dict) -> None:
    model = build(**case)
    for length in (3, 11):
        with torch.no_grad():
            cache = returned_cache(model(draw_tokens(1, length), use_cache=True))
        kept = [part for layer in cache.layers for part in vars(layer).values()]
        kept += [part for parts in kept if isinstance(parts, dict) for part in parts.values()]
        # without a convolution a recurrent layer is marked as filled by one zero, which says nothing
        sizes = [part.numel() for part in kept if isinstance(part, torch.Tensor) and part.numel() > 1]
        assert model.state_numbers(length) == sum(sizes)


@pytest.mark.parametrize("case", [{}, {"conv_values": True, "forget_rate": True}, {"dpfp": 1, "qk_l2_norm": False}])
@pytest.mark.parametrize("mixers", MIXERS)
def test_a_float64_mixer_has_the_gradients_of_finite_differences(mixers: str, case: dict) -> None:
    # transformers' RMS norm computes in float32
    config = tiny_config(mixers=mixers, conv_size=4, read_norm=False, tolerance=1e-13, num_key_value_heads=1, **case)
    torch.manual_seed(0)
    mixer = MesaForCausalLM(config).double().model.layers[0].mixer
    masks = {"attention_mask": {"full_attention": None, "sliding_attention": None}}
    weights = dict(mixer.named_parameters())

    def output(hidden_states: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        changed = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(mixer, changed, (hidden_states,), masks)[0]

    hidden_states = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (hidden_states, *weights.values()), fast_mode=True)


@pytest.mark.parametrize("size", [1, 3, 13])
@pytest.mark.parametrize("case", CASES)
def test_padding_anywhere_read_in_pieces_changes_nothing(case: dict, size: int) -> None:
    model = biased_model(**SPECIAL, **case)
    mask = PADDED[[0, 2, 3]] if "window" in case else PADDED  # a window counts places, which a hole takes up
    # padding is an ordinary token here, so that an embedding of zero cannot hide a missing mask
    ids, positions = draw_tokens(len(mask), 13), (mask.cumsum(-1) - 1).clamp(min=0)
    cache, logits, seen = DynamicCache(config=model.config), [], 0
    with torch.no_grad():
        for piece in ids.split(size, dim=1):
            place = slice(seen, seen := seen + piece.shape[1])
            options = {"attention_mask": mask[:, :seen], "position_ids": positions[:, place], "cache": cache}
            logits.append(model(piece, use_cache=True, **options).logits)
        for row, real in enumerate(mask.bool()):
            alone = model(ids[row, real][None]).logits[0]
            torch.testing.assert_close(torch.cat(logits, dim=1)[row, real], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_packed_documents_do_not_see_each_other(case: dict) -> None:
    model, lengths = build(**case), [1, 30, 3, 40, 2]
    documents = [draw_tokens(1, length, seed=length) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(torch.cat(documents, dim=1), position_ids=positions).logits
        alone = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_is_the_same(case: dict, tmp_path: Path) -> None:
    model, ids = build(**case), draw_tokens(1, 12)
    for parameter in model.parameters():
        parameter.data.add_(0.125)  # which loading must not start anew
    model.save_pretrained(tmp_path)
    loaded = MesaForCausalLM.from_pretrained(tmp_path).eval()
    saved, kept = model.config.to_dict(), loaded.config.to_dict()
    assert {key for key in kept if saved.get(key) != kept[key]} <= {"_name_or_path", "architectures", "dtype"}
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_checkpointing_and_plain_gradients_agree_and_reach_every_parameter(case: dict) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(**case).train()
        if checkpointing:
            # the name since transformers 5.20; the older one warns there
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(draw_tokens(2, 10), labels=draw_tokens(2, 10)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_stays_near_float32(case: dict) -> None:
    model, ids = build(**case), draw_tokens(2, 40)
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(ids).logits
    assert torch.isfinite(half).all()
    assert (half.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("halves", [(False, True), (True, False)], ids=["float32-first", "autocast-first"])
@pytest.mark.parametrize("case", CASES)
def test_a_cache_goes_on_into_and_out_of_autocast(case: dict, halves: tuple[bool, bool]) -> None:
    model, ids, cache, parts = build(**case), draw_tokens(2, 20), None, []
    with torch.no_grad():
        exact = model(ids).logits
        for half, part in zip(halves * 2, ids.split([12, 5, 1, 2], dim=1), strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output = model(part, cache=cache, use_cache=True)
            cache = returned_cache(output)
            parts.append(output.logits.float())
    assert (torch.cat(parts, dim=1) - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("case", CASES)
def test_loaded_in_bfloat16_stays_near_float32(case: dict, tmp_path: Path) -> None:
    model, ids = build(**case), draw_tokens(2, 40)
    model.save_pretrained(tmp_path)
    half = MesaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    words = {word for name in model.config.layer_mixers for word in MIXERS[name].float32}
    words |= {RATE} if model.config.forget_rate else set()
    assert kept == {name for name, _ in half.named_parameters() if words & set(name.split("."))}
    gates = [name for name, module in half.named_modules() if isinstance(module, GateProjection)]
    assert {f"{name}.{part}" for name in gates for part in ("weight", "bias")} <= kept
    if model.config.gates:
        assert words == {word for name in kept for word in name.split(".")} & words
    with torch.no_grad():
        exact, rough = model(ids).logits, half(ids).logits
    assert (rough.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    "case",  # one has a layer of every mixer
    [case if case.id == "hybrid" else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in CASES],
)
def test_compiled_equals_eager(case: dict) -> None:
    model, ids = build(**case).train(), draw_tokens(2, 20)
    positions = torch.cat((torch.arange(12), torch.arange(8)))[None].expand(2, -1)
    eager = model(ids, position_ids=positions, labels=ids, use_cache=False)
    eager.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    output = compiled(ids, position_ids=positions, labels=ids, use_cache=False)
    output.loss.backward()
    torch.testing.assert_close(output.logits, eager.logits, atol=1e-4, rtol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_operations_are_counted(case: dict) -> None:
    model = build(**case)
    short, long = model.flops_per_token(64), model.flops_per_token(4096)
    model(draw_tokens(1, 64))
    assert model.flops_per_token(64) == short  # whatever the solver has met
    assert short > 6 * (sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel())
    assert all(layer.mixer.flops(64) > 0 for layer in model.model.layers)
    rows = [MIXERS[name] for name in model.config.layer_mixers]
    assert (long > short) == any(not row.recurrent for row in rows)
    assert (model.flops_per_token(64, 10.0) > short) == any(issubclass(row.build, MesaMixer) for row in rows)
    assert (model.solver_steps() is not None) == any(issubclass(row.build, MesaMixer) for row in rows)


def test_rows_name_their_mixers_and_cache_layers_of_transformers() -> None:
    for name, row in MIXERS.items():
        assert row.build.name == name
        for size in (0, 4):
            cache = DynamicCache(config=build(mixers=name, conv_size=size).config)
            states = [hasattr(layer, "recurrent_states") for layer in cache.layers]
            assert states == [row.recurrent or size > 0] * 2
            assert [hasattr(layer, "keys") for layer in cache.layers] == [not row.recurrent] * 2


@pytest.mark.parametrize("kept", [True, False])
def test_layers_take_turns_in_measuring_their_solver_and_compute_as_before(kept: bool) -> None:
    model = build(mixers=["mesa", "softmax", "mesa"], num_hidden_layers=3, **({} if kept else {"max_steps": 1}))
    ids = draw_tokens(2, 70)
    before = model(ids).logits
    seen = []
    for number in range(6):
        chosen = model.sample_solver(number)
        assert torch.equal(model(ids).logits, before)
        seen.append(chosen.solver_sample)
        model(ids)
        assert chosen.solver_sample is seen[-1]  # one row of one pass, and no more
    groups = model.model.layers[0].mixer.groups
    assert [(sample.layer, sample.head) for sample in seen[:4]] == [(0, 0), (2, 0), (0, 1 % groups), (2, 1 % groups)]
    assert all((sample.misses == 0.0) == kept for sample in seen)
    if kept:
        assert all(0.0 < sample.residual < 1e-3 for sample in seen)
    assert build(mixers="softmax").sample_solver(0) is None


def test_padding_and_document_starts_are_no_gates() -> None:
    log_forget = torch.tensor([0.0, 0.0, -0.5, -torch.inf, -0.5]).view(1, 5, 1)
    real = torch.tensor([[False, False, True, True, True]])
    mean, saturated = sample_of_gates(log_forget, real).tolist()
    assert (mean, saturated) == (pytest.approx(math.exp(-0.5)), 0.0)

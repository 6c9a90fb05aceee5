"""Low-rank adapters (PEFT) on the projections: train, save, load, merge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mesalm import MesaForCausalLM

peft = pytest.importorskip("peft", reason="in the extra dev")
# peft asks for an attribute by the name it had before transformers 5.20
pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing` is deprecated:FutureWarning")

Build = Callable[..., MesaForCausalLM]
Draw = Callable[..., torch.Tensor]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize("target", [PROJECTIONS, "all-linear"], ids=["projections", "all"])
def test_adapters_train_save_load_and_merge(
    target: list[str] | str, kind: str, build: Build, tokens: Draw, tmp_path: Path
) -> None:
    model, ids = build(kind), tokens(2, 12)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        untouched = model(ids).logits
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=target, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, options).train()
    trainable = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trainable)
    assert {name.split(".")[6] for name in trainable if "mixer" in name} >= set(PROJECTIONS)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimiser = torch.optim.AdamW(trainable.values(), 1e-2)
    losses = []
    for _ in range(6):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(trainable)
    adapted.eval()
    with torch.no_grad():
        learnt = adapted(ids).logits
        assert (learnt - untouched).abs().max() > 1e-3
        written = adapted.generate(input_ids=ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        adapted.save_pretrained(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(loaded(ids).logits, learnt)
        merged = loaded.merge_and_unload()
        assert type(merged) is MesaForCausalLM
        torch.testing.assert_close(merged(ids).logits, learnt, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(ids).logits, learnt, atol=1e-4, rtol=1e-4)
        assert torch.equal(again.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False), written)


# In a tied model such an adapter acts on one of two uses of a weight and cannot be merged into it, as PEFT warns.
UNTIED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "embedding, DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
}
EITHER = {
    "all, DoRA": {"target_modules": "all-linear", "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 7]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"], "ensure_weight_tying": True},
}


# peft says both of every model with tied embeddings
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize(
    ("options", "tie"),
    [
        *(pytest.param(options, False, id=f"{name}, untied") for name, options in (UNTIED | EITHER).items()),
        *(pytest.param(options, True, id=f"{name}, tied") for name, options in EITHER.items()),
    ],
)
def test_adapters_of_every_target_merge_into_what_they_were(
    options: dict, tie: bool, scaled: bool, build: Build, tokens: Draw, tmp_path: Path
) -> None:
    model, ids = build("hybrid", tie_word_embeddings=tie, scale_embeddings=scaled, tolerance=1e-7), tokens(2, 12)
    ids[0, :3] = torch.tensor([3, 4, 7])
    base = copy.deepcopy(model)
    with torch.no_grad():
        untouched = model(ids).logits
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options)).eval()
        torch.testing.assert_close(adapted(ids).logits, untouched, atol=1e-6, rtol=0)
        torch.manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        learnt = adapted(ids).logits
        assert (learnt - untouched).abs().max() > 1e-2
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(loaded(ids).logits, learnt, atol=1e-5, rtol=1e-5)
        # the first norm magnifies the rounding of a residual stream that begins with embeddings of size 0.02
        bound = 1e-5 if scaled else 5e-5
        torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, learnt, atol=bound, rtol=bound)


# PEFT says so of every model: it leaves positions to the model
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        *((kind, peft.PromptTuningConfig) for kind in ("mesa", "hybrid", "linear", "softmax")),
        ("hybrid", peft.PromptEncoderConfig),
        ("softmax", peft.PrefixTuningConfig),
    ],
)
def test_a_learned_prompt_is_read_once_before_what_is_written(
    kind: str, learned: type, build: Build, tokens: Draw
) -> None:
    adapted = peft.get_peft_model(build(kind), learned(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        for parameter in adapted.prompt_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
        result = adapted.generate(
            input_ids=tokens(2, 9), max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        whole = adapted(result.sequences).logits[:, -6:-1]
    torch.testing.assert_close(torch.stack(result.logits, dim=1), whole, atol=1e-4, rtol=1e-4)

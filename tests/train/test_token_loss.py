"""The loss in parts: exact, without all logits, and with z-loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe
from mesalm.train.token_loss import TokenLoss

Load = Callable[..., Recipe]

VOCABULARY = 61


class Ledger(TorchDispatchMode):
    """The bytes of all tensors alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(model: Any, loss: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compare two losses of a float64 model and their gradients."""
    assert abs(loss.detach() - wanted.detach()) < 1e-13 * wanted.detach()
    for one, other in zip(gradients(model, loss), gradients(model, wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def scored_log_probabilities(model: Any, ids: torch.Tensor, targets: torch.Tensor, ignored: int) -> torch.Tensor:
    """Return the log-probabilities of the targets that are scored, and the divisors' logarithms, [2, scored]."""
    logits, scored = model(input_ids=ids).logits, targets != ignored
    divisor = logits.exp().sum(-1).log()
    chosen = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return torch.stack([(chosen - divisor)[scored], divisor[scored]])


@pytest.mark.parametrize("tokens", [1, 5, 16, 99])
@pytest.mark.parametrize(
    "options", [{}, {"num_items_in_batch": 7}, {"ignore_index": 3}, {"shifted": True}, {"logit_softcap": 0.5}]
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(tokens: int, options: dict[str, Any]) -> None:
    softcap = {name: value for name, value in options.items() if name == "logit_softcap"}
    model = tiny_model(mixers="softmax", num_hidden_layers=1, **softcap).double().train()
    ids = torch.randint(5, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    ignored = options.get("ignore_index", -100)
    labels[0, 2:4] = ignored
    targets = torch.cat([labels[:, 1:], torch.full((2, 1), ignored)], 1)
    batch = {"input_ids": ids, "labels": labels, **{k: v for k, v in options.items() if k[:3] in ("num", "ign")}}
    if options.get("shifted"):
        targets = batch["shift_labels"] = labels.roll(-1, 1)
    found = scored_log_probabilities(model, ids, targets, ignored)[0]
    wanted = -found.sum() / options.get("num_items_in_batch", len(found))
    model.token_loss = TokenLoss(tokens * VOCABULARY)
    assert_same(model, model(**batch).loss, wanted)


def test_all_logits_never_exist() -> None:
    tokens, vocabulary, parts = 512, 2048, 16
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    hidden = torch.randn(1, tokens, 8, requires_grad=True)
    labels = torch.randint(vocabulary, (1, tokens))
    peaks = []
    for logits in (tokens * vocabulary, tokens * vocabulary // parts):
        with Ledger() as ledger:
            TokenLoss(logits)(lambda hidden: hidden @ weight.T, hidden, labels, vocabulary).backward()
        peaks.append(ledger.peak)
    whole, part = tokens * vocabulary * 4, tokens * vocabulary * 4 // parts
    assert peaks[0] >= 2 * whole  # logits and log-probabilities or their gradient
    assert peaks[1] <= 4 * part + 4 * weight.numel() * 4 + 4 * hidden.numel() * 4


def test_z_loss_is_added_where_a_gradient_is_asked_for() -> None:
    model = tiny_model(mixers="softmax", num_hidden_layers=1).double()
    ids = torch.randint(5, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 2:4] = -100
    targets = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    for tokens in (4, 99):
        model.token_loss = TokenLoss(tokens * VOCABULARY, 0.3)
        log_probability, divisor = scored_log_probabilities(model, ids, targets, -100)
        wanted = -log_probability.mean() + 0.3 * divisor.square().mean()
        assert_same(model, model(input_ids=ids, labels=labels).loss, wanted)
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        assert loss == pytest.approx(-float(log_probability.mean().detach()), rel=1e-12)


def test_a_run_in_parts_is_the_run_and_one_with_z_loss_resumes_exactly(load: Load, stopped: Load) -> None:
    def history(recipe: Recipe, event: str = "step") -> list[float]:
        lines = read_journal(pretrain(recipe, quiet=True) / "journal.jsonl")
        return [line["loss"] for line in lines if line["event"] == event]

    plain = history(load("name=plain"))
    assert history(load("name=parts", "train.logits_at_once=5000")) == pytest.approx(plain, rel=1e-5)
    z_loss = ("train.z_loss=0.1", "train.logits_at_once=5000")
    whole = load("name=whole", *z_loss)
    assert history(whole)[0] > plain[0] + 1
    assert history(stopped(load(*z_loss), 6)) == history(whole)
    assert history(whole, "valid")[0] == pytest.approx(history(load("name=plain"), "valid")[0], abs=0.3)


def test_z_loss_of_a_model_that_has_none_is_refused(load: Load, tmp_path: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)).save_pretrained(tmp_path / "llama")
    recipe = load("train.z_loss=0.1", f"init_from={tmp_path}/llama", "arms={}", "model={}")
    with pytest.raises(SettingsError, match=r"train\.z_loss: LlamaForCausalLM has no z-loss"):
        pretrain(recipe, quiet=True)

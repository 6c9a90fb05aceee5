"""Prompt tuning: only the prefix learns, the prefix helps, and its folder is a model that can be evaluated."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model

from mesalm.hub.open_model import open_model
from mesalm.interrupts import Interrupted
from mesalm.model.cache_mesa import returned_cache
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.settings import SettingsError
from mesalm.tuning.prompt_tuning import TuneSettings, collate_pairs, scored_loss, tune_prefix, tune_settings
from mesalm.tuning.soft_prefix import PrefixedModel, load_prefix

ROWS = [([1, 5, 2, 7, 3], 3), ([1, 6, 2, 9, 8, 3], 3), ([1, 4, 2, 7, 3], 3), ([1, 5, 5, 2, 9, 3], 4)]
MIXERS = {"mesa": "mesa", "softmax": "softmax", "hybrid": ["mesa", "softmax"]}


def small(mixers: Any, seed: int = 0) -> MesaForCausalLM:
    options = {"max_position_embeddings": 32, "attention_dropout": 0.5, "initializer_range": 0.3, "tolerance": 1e-4}
    return tiny_model(seed=seed, vocab_size=12, mixers=mixers, **options)


def settings(**changes: Any) -> TuneSettings:
    return TuneSettings(**{"vectors": 3, "steps": 20, "batch_rows": 4, "every": 10, **changes})


@pytest.fixture(params=MIXERS)
def model(request: pytest.FixtureRequest) -> MesaForCausalLM:
    return small(MIXERS[request.param])


def test_the_prefix_is_read_before_the_tokens(model: MesaForCausalLM) -> None:
    """A prefix of embeddings of tokens gives what those tokens before the sequence give."""
    before, ids = torch.tensor([[3, 8, 2]]), torch.tensor([[1, 5, 7, 4], [2, 2, 9, 0]])
    prefixed = PrefixedModel(copy.deepcopy(model), model.get_input_embeddings()(before)[0])
    wanted = model(torch.cat((before.expand(2, -1), ids), dim=1)).logits[:, 3:]
    # the solver of mesa layers stops within 1e-4; another batch stops elsewhere
    torch.testing.assert_close(prefixed(ids).logits, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(prefixed(ids, logits_to_keep=2).logits, wanted[:, -2:], rtol=1e-3, atol=1e-4)
    first = prefixed(ids[:, :2], use_cache=True)
    rest = prefixed(ids[:, 2:], cache=returned_cache(first), use_cache=True)
    both = torch.cat((first.logits, rest.logits), dim=1)
    torch.testing.assert_close(both, wanted, rtol=1e-3, atol=1e-3)
    written = prefixed.generate(ids[:1], torch.ones(1, 4, dtype=torch.long), max_new_tokens=2, do_sample=False)
    plain = model.generate(torch.cat((before, ids[:1]), dim=1), max_new_tokens=2, do_sample=False)
    assert written.tolist() == plain[:, 3:].tolist()


def test_the_gradient_reaches_the_prefix_and_nothing_else(model: MesaForCausalLM) -> None:
    prefixed = PrefixedModel(model, torch.randn(3, 32))
    prefixed.train()
    assert not model.training
    prefixed(**collate_pairs(ROWS)).loss.backward()
    assert prefixed.prefix.grad is not None
    assert (prefixed.prefix.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tuning_lowers_the_loss_and_leaves_the_model_as_it_was(model: MesaForCausalLM, tmp_path: Path) -> None:
    weights = copy.deepcopy(model.state_dict())
    plain = scored_loss(model, ROWS, 4)
    loss = tune_prefix(model, ROWS, ROWS, settings(steps=40), tmp_path / "p", {"base": "x"}, device="cpu", quiet=True)
    assert loss < plain - 0.2
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert scored_loss(load_prefix(model, tmp_path / "p"), ROWS, 4) == pytest.approx(loss, rel=1e-5)
    assert not (tmp_path / "p" / "checkpoints").exists()


def test_padding_to_the_longest_row_is_not_seen(model: MesaForCausalLM) -> None:
    prefixed = PrefixedModel(model, torch.randn(3, 32))
    one_by_one = scored_loss(prefixed, ROWS, 1)
    assert scored_loss(prefixed, ROWS, 4) == pytest.approx(one_by_one, rel=1e-4)


def interrupting(*arguments: Any) -> float:
    os.kill(os.getpid(), signal.SIGINT)
    return scored_loss(*arguments)


def test_stopped_and_taken_up_it_ends_at_the_same_prefix(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> torch.Tensor:
        base = small("softmax")
        tune_prefix(base, ROWS, ROWS, settings(), tmp_path / name, {"base": "x"}, device="cpu", quiet=True, **options)
        return load_prefix(base, tmp_path / name).prefix.detach()

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("broken", score=interrupting)
    assert not (tmp_path / "broken" / "prefix.json").exists()
    assert torch.equal(run("broken"), whole)


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path: Path) -> None:
    def run(base: Any = None, *, task: str = "x", **options: Any) -> None:
        changes = options.pop("changes", {})
        record = {"base": "b", "tasks": {task: "1"}}
        base = base or small("softmax")
        tune_prefix(base, ROWS, ROWS, settings(**changes), tmp_path / "p", record, device="cpu", quiet=True, **options)

    with pytest.raises(Interrupted):
        run(score=interrupting)
    with pytest.raises(SettingsError, match=r"settings\.seed is 0 there and 4 now; give another --out"):
        run(changes={"seed": 4})
    with pytest.raises(SettingsError, match=r"tasks\.x is '1' there and None now"):
        run(task="y")
    with pytest.raises(SettingsError, match="embedding_sha256 is"):
        run(small("softmax", seed=1))
    run()


def test_a_prefix_is_finished_with_the_files_beside_it(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    def run(decorate: Callable[[Path], object]) -> None:
        base, out, record = small("softmax"), tmp_path / "p", {"base": "x"}
        tune_prefix(base, ROWS, ROWS, settings(steps=2), out, record, device="cpu", quiet=True, decorate=decorate)

    with pytest.raises(OSError, match="No space left"):
        run(full)
    run(lambda folder: (folder / "tokenizer.json").touch())
    assert {"prefix.json", "tokenizer.json"} < {path.name for path in (tmp_path / "p").iterdir()}


def test_its_folder_opens_as_the_model_with_the_prefix(tmp_path: Path) -> None:
    base = small("mesa")
    base.save_pretrained(tmp_path / "base")
    record = {"base": str(tmp_path / "base")}
    tune_prefix(base, ROWS, ROWS, settings(steps=2), tmp_path / "p", record, device="cpu", quiet=True)
    opened: Any = open_model(str(tmp_path / "p"))
    ids = torch.tensor([[1, 5, 7, 4]])
    torch.testing.assert_close(opened(ids).logits, load_prefix(base, tmp_path / "p")(ids).logits)
    small("mesa", seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="have changed since the prefix was tuned"):
        open_model(str(tmp_path / "p"))
    with pytest.raises(SettingsError, match="finished prefix"):
        tune_prefix(base, ROWS, ROWS, settings(), tmp_path / "p", record, device="cpu", quiet=True)


def test_settings_are_changed_by_dotted_key() -> None:
    changed = tune_settings(["vectors=8", "optim.learning_rate=1e-2", "shots=[0]"])
    assert (changed.vectors, changed.optim.learning_rate, changed.optim.weight_decay) == (8, 1e-2, 0.0)
    with pytest.raises(SettingsError, match="did you mean 'vectors'"):
        tune_settings(["vector=8"])


def test_a_start_at_random_tokens_depends_on_the_seed(tmp_path: Path) -> None:
    prefixes = []
    for seed in (0, 0, 1):
        base, out = small("softmax"), tmp_path / str(len(prefixes))
        chosen = settings(steps=1, init="vocabulary", seed=seed)
        tune_prefix(base, ROWS, ROWS, chosen, out, {"base": "x"}, device="cpu", quiet=True)
        prefixes.append(load_prefix(base, out).prefix)
    assert torch.equal(prefixes[0], prefixes[1])
    assert not torch.equal(prefixes[0], prefixes[2])
    assert json.loads((tmp_path / "0" / "prefix.json").read_text())["vectors"] == 3

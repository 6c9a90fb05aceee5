"""Checkpoints of flash-linear-attention compute here what they compute there, and go back unchanged.

`peers/` holds small random ones with the peer's own logits; `tests/hub/write_peers.py` writes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SPECIAL, tiny_model
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mesalm import MesaForCausalLM
from mesalm.cli import main
from mesalm.hub.model_card import conversion_lines, read_conversion
from mesalm.hub.open_model import open_model

PEERS = Path(__file__).parent / "peers"
KINDS = [path.name for path in sorted(PEERS.iterdir())]


@pytest.fixture
def peer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """Copy a checkpoint beside a tokenizer, its configuration changed, and return the folder."""

    def copy(kind: str, **changes: Any) -> Path:
        folder = tmp_path / kind
        shutil.copytree(PEERS / kind, folder, dirs_exist_ok=True)
        (folder / "reference.safetensors").unlink()
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **changes}))
        tokenizer.save_pretrained(folder)
        return folder

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_a_peers_checkpoint_computes_the_same_and_goes_back(kind: str, peer: Any, tmp_path: Path) -> None:
    source = peer(kind)
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    model: Any = open_model(str(tmp_path / "ours"))
    reference = load_file(PEERS / kind / "reference.safetensors")
    model.config.tolerance = 1e-6
    with torch.no_grad():
        logits = model(reference["ids"]).logits
    # both are float32; the solves of the one are direct, those of the other iterative
    assert (logits - reference["logits"]).norm() < 1e-4 * reference["logits"].norm()
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "fla"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    stated, written = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert written == {name: stated[name] for name in written}


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("mesa_net", {"use_output_gate": True}, "use_output_gate"),
        ("mesa_net", {"attn": {"layers": [1], "num_heads": 2}}, "attn"),
        ("gated_deltanet", {"num_v_heads": 4}, "num_v_heads"),
        ("gated_deltanet", {"allow_neg_eigval": True}, "allow_neg_eigval"),
        ("gated_deltanet", {"output_gate_activation": "sigmoid"}, "output_gate_activation"),
        ("gated_deltanet", {"hidden_act": "powlu"}, "hidden_act"),
    ],
)
def test_what_cannot_be_represented_is_refused(
    kind: str, changes: dict, named: str, peer: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["convert", str(peer(kind, **changes)), str(tmp_path / "ours")]) == 2
    assert f"{named} is " in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_generation_settings_are_kept(peer: Any, tmp_path: Path) -> None:
    folder = peer("mesa_net")
    GenerationConfig(do_sample=True, temperature=0.5, eos_token_id=[2, 3]).save_pretrained(folder)
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    settings = open_model(str(tmp_path / "ours")).generation_config
    assert (settings.do_sample, settings.temperature, settings.eos_token_id) == (True, 0.5, [2, 3])


def test_a_strange_weight_is_refused(peer: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = peer("mesa_net")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.attn.strange.weight": torch.ones(2)}, folder / "model.safetensors")
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    assert "mixer.strange.weight has no counterpart" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("", "no .safetensors file contains model.embeddings.weight"),
        ("layers.1.attn.q_conv1d", "mixer.conv.weight is "),
        ("layers.1.attn.b_proj", "mixer.input_proj.weight has no counterpart"),
        ("layers.1.attn.a_proj", "mixer.forget_proj.weight has no counterpart"),
        ("layers.1.", "model.layers.1.input_layernorm.weight has no counterpart"),
    ],
)
def test_a_missing_weight_is_named(
    kind: str, lost: str, named: str, peer: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = peer(kind)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if lost not in name}, folder / "model.safetensors")
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    assert named in capsys.readouterr().err


def test_a_broken_file_is_told(peer: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = peer("mesa_net")
    (folder / "model.safetensors").write_bytes(b"half of a file")
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    assert "mesa_net: no weights could be opened there" in capsys.readouterr().err


@pytest.mark.parametrize("mixers", ["mesa", ["mesa"]], ids=str)
def test_a_scaled_tied_model_goes_to_the_peer_and_back(mixers: Any, save_beside: Any, tmp_path: Path) -> None:
    model: MesaForCausalLM = tiny_model(vocab_size=258, mixers=mixers, forget_cap=None, **SPECIAL)
    ids = torch.randint(2, 258, (1, 40), generator=torch.Generator().manual_seed(0))
    assert main(["convert", save_beside(model), str(tmp_path / "fla"), "--to", "fla"]) == 0
    assert main(["convert", str(tmp_path / "fla"), str(tmp_path / "ours")]) == 0
    (line,) = conversion_lines(read_conversion(tmp_path / "ours"))
    assert line.endswith(": weights renamed, no layer replaced")
    again: Any = open_model(str(tmp_path / "ours"))
    assert not again.config.scale_embeddings
    again.config.tolerance = model.config.tolerance
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixers": "mesa"}, "forget_cap is 0.9975"),
        ({"mixers": "mesa", "forget_cap": None, "num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ({"mixers": "delta", "forget_cap": None}, "value|conv_values is False"),
        ({"mixers": "mesa", "forget_cap": None, "conv_size": 0}, "conv_size is 0"),
        ({"mixers": ["mesa", "softmax"]}, "needs a model of mesa or delta layers only"),
    ],
)
def test_models_the_peer_has_no_words_for_are_refused(
    changes: dict, named: str, save_beside: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save_beside(tiny_model(vocab_size=258, **SPECIAL, **changes))
    assert main(["convert", folder, str(tmp_path / "fla"), "--to", "fla"]) == 2
    assert any(word in capsys.readouterr().err for word in named.split("|"))

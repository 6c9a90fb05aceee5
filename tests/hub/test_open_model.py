"""A model opens only where its configuration describes its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.hub.open_model import open_model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 32, "head_dim": 16}, r"model\.embed_tokens\.weight is 16 x 16, not 16 x 32"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\.input_layernorm\.weight is missing"),
        ({"mixers": "softmax"}, r"model\.layers\.0\.mixer\.conv\.weight has no place in the model"),
        ({"num_attention_heads": 0}, r"num_attention_heads: 0 must be"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = MesaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    MesaForCausalLM(config).save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).config.hidden_size == 16
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        open_model(str(tmp_path))
    assert "\n" not in str(caught.value)

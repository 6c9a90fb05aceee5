"""A model opens only where its configuration describes its weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from mesalm.hub.open_model import open_model
from mesalm.pretrained import load


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 60}, r"model\.embed_tokens\.weight is 61 x 32, not 60 x 32"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\.input_layernorm\.weight is missing"),
        ({"mixers": "softmax"}, r"model\.layers\.0\.mixer\.conv\.weight has no place in the model"),
        ({"num_attention_heads": 0}, r"num_attention_heads: 0 must be"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).config.num_hidden_layers == 1
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        open_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_attempts_to_reach_the_hub_are_not_counted_aloud() -> None:
    heard = []

    class Unreachable:
        @staticmethod
        def from_pretrained(place: str) -> None:
            heard.append(logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING))
            raise OSError("no network")

    with pytest.raises(ValueError, match="no/such: no model could be opened there"):
        load(Unreachable, "no/such", "model")
    assert heard == [False]

"""A model opens only where its configuration describes its weights."""

from __future__ import annotations

import json
import logging
import socket
import threading
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
from huggingface_hub import constants
from tiny import tiny_model

from mesalm import pretrained
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


class Opened:
    """A kind of model that records how it was opened, and of which there are no files."""

    heard: ClassVar[list[bool]] = []

    @classmethod
    def from_pretrained(cls, place: str) -> None:
        loud = logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
        assert not loud  # attempts to reach the Hub are not counted aloud
        assert constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE
        cls.heard.append(constants.HF_HUB_OFFLINE)
        raise OSError("no such file")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
def test_a_hub_that_does_not_answer_is_asked_once(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def serve(client: socket.socket) -> None:
        asked.append(client)
        client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as hub:
        threading.Thread(target=lambda: [serve(hub.accept()[0]) for _ in range(9)], daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setattr(pretrained, "PATIENCE", 0.5 if not answer else 60)
        monkeypatch.setattr(pretrained, "_asked", {})
        monkeypatch.setattr(Opened, "heard", [])
        for _ in range(2):
            with pytest.raises(ValueError, match="no/such: no model could be opened there") as caught:
                load(Opened, "no/such", "model")
            assert ("the Hub cannot be reached" in str(caught.value)) == (not answer)
        with pytest.raises(ValueError, match="no model could be opened there"):
            load(Opened, str(Path(__file__).parent), "model")
    assert Opened.heard == [not answer, not answer, False]
    assert len(asked) == 1

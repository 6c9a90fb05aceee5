"""transformers' own server over a model of ours, by the line that docs/serving.md shows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from transformers import PreTrainedTokenizerFast

from mesalm import MesaForCausalLM

pytest.importorskip("fastapi", reason="in transformers' extra serving")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
PROMPT = "the cat"


def shown_program() -> str:
    """Return the program of the page's line, which puts our class where the server looks for it."""
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith('python -c "'))
    return line.split('"')[1]


def ask(port: int, **fields: Any) -> str:
    """Send a completion request and return the answer as it comes."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}).encode()
    request = Request(
        f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.fixture
def served(build: Callable[..., MesaForCausalLM], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Any]:
    """Start the server on a folder with a small model; give the folder, the port and the model's own text."""
    model, folder = build("hybrid", vocab_size=258), tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    written = model.generate(ids, max_new_tokens=8, do_sample=False)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", shown_program(), "serve", str(folder), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ.copy()) as server:
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                    break
                except (URLError, ConnectionError):
                    assert server.poll() is None, server.communicate()[0].decode()
                    assert time.monotonic() < end
                    time.sleep(0.5)
            yield str(folder), port, tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        finally:
            server.kill()


@pytest.mark.slow
def test_the_server_writes_what_generate_writes(served: tuple[str, int, str]) -> None:
    folder, port, expected = served
    whole = json.loads(ask(port, model=folder))
    assert whole["choices"][0]["text"] == expected
    lines = ask(port, model=folder, stream=True).splitlines()
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert len(parts) > 1
    assert "".join(part["choices"][0]["text"] for part in parts if part["choices"]) == expected

"""The block of docs/sft.md runs on a published folder, learns, and scores what the assistant says alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import AutoTokenizer

from mesalm.hub.publish import publish

PAGE = Path(__file__).parents[2] / "docs/sft.md"
(BLOCK,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what TRL and its dependencies warn of is theirs
def test_a_published_model_learns_to_answer(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="in the extra sft")
    monkeypatch.chdir(tmp_path)
    publish(str(run), tmp_path / "published")
    made: dict[str, Any] = {}
    exec(compile(BLOCK, str(PAGE), "exec"), made)
    losses = [line["loss"] for line in made["trainer"].state.log_history if "loss" in line]
    assert losses[-1] < losses[0] / 2
    tokenizer = AutoTokenizer.from_pretrained("chat", trust_remote_code=True)
    assert tokenizer.chat_template == made["tokenizer"].chat_template
    batch = next(iter(made["trainer"].get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        said = tokenizer.decode(ids).split("<|assistant|>")[1].split(tokenizer.eos_token)[0]
        assert tokenizer.decode(ids[labels != -100]) == said + tokenizer.eos_token
        assert (labels[labels != -100] == ids[labels != -100]).all()
    message = made["answer"][0]["generated_text"][-1]
    assert message["role"] == "assistant"
    assert message["content"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what TRL and its dependencies warn of is theirs
def test_a_loss_without_logits_is_that_of_the_model() -> None:
    pytest.importorskip("trl", reason="in the extra sft")
    from trl.trainer.utils import add_fused_lm_head

    model, ids = tiny_model(mixers=["mesa", "softmax"], logit_softcap=0.5), torch.arange(2, 22)[None]
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
        add_fused_lm_head(model)
        torch.testing.assert_close(model(ids, labels=ids, fused_lm_head=True).loss, expected)

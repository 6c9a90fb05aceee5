"""One start token, by every way into lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from mesalm import MesaForCausalLM
from mesalm.data.bpe import train_tokenizer

pytest.importorskip("lm_eval", reason="in the extra eval")

TALE = "the quick brown fox jumps over the lazy dog "


class Direct:
    """Answer the harness's requests by plain forwards of rows that begin with one start token."""

    def __init__(self, folder: str) -> None:
        self.model = MesaForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def loglikelihood(self, context: str, answer: str) -> float:
        row = [0, *self.ids(context + answer)]
        first = 1 + len(self.ids(context))
        with torch.no_grad():
            logs = self.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        return sum(float(logs[place - 1, row[place]]) for place in range(first, len(row)))

    def loglikelihood_rolling(self, text: str) -> float:
        return self.loglikelihood("", text)

    def generate_until(self, context: str, options: dict) -> str:
        row = torch.tensor([[0, *self.ids(context)]])
        made = self.model.generate(row, max_new_tokens=options["max_gen_toks"], do_sample=False, eos_token_id=None)
        return self.tokenizer.decode(made[0, row.shape[1] :], skip_special_tokens=True)


GREEDY = {"max_gen_toks": 6, "until": ["\n"], "do_sample": False}
ASKED = {
    "loglikelihood": [("the quick", " brown fox"), ("", "lazy dog"), ((TALE * 2).strip(), " fox"), ("a", " cat")],
    "generate_until": [("the quick", GREEDY), ("a", GREEDY), (TALE, GREEDY)],
    "loglikelihood_rolling": [(TALE,), ("fox",)],
}


def ask(harness: Any, kind: str) -> list[Any]:
    """Return the harness's answers to what is asked of one kind; of likelihoods without whether they are greedy."""
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type=kind, doc={}, arguments=asked, idx=0) for asked in ASKED[kind]]
    answers = getattr(harness, kind)(requests, disable_tqdm=True)
    return [answer[0] if kind == "loglikelihood" else answer for answer in answers]


@pytest.mark.usefixtures("offline")
def test_every_way_into_the_harness_reads_one_start_token(save_mesa, tmp_path: Path) -> None:
    """The harness's own model as docs/publishing.md names it, ours, and plain forwards, on all three kinds."""
    from lm_eval.models.huggingface import HFLM

    from mesa_eval.harness import register

    folder = save_mesa(tmp_path / "model", train_tokenizer([TALE * 20], 300))
    direct = Direct(folder)
    options = {"pretrained": folder, "device": "cpu", "batch_size": 2, "dtype": "float32"}
    ours = register()(**options)
    plain = {put: HFLM(**options, **({} if put is None else {"add_bos_token": put})) for put in (None, True, False)}
    for kind, ways in (
        ("loglikelihood", [ours, plain[None], plain[True]]),
        ("generate_until", [ours, plain[None], plain[True]]),
        ("loglikelihood_rolling", [ours, plain[False]]),
    ):
        expected = [getattr(direct, kind)(*asked) for asked in ASKED[kind]]
        for way in ways:
            if kind == "generate_until":
                assert ask(way, kind) == expected
            else:
                assert ask(way, kind) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("offline")
def test_a_prompt_begins_with_the_start_token_whatever_it_spells(save_mesa, tmp_path: Path) -> None:
    """Also of a tokenizer that has only an end token, and before prompts that spell the start token."""
    from mesa_eval.harness import register

    tokenizer = train_tokenizer([TALE * 20], 300)
    tokenizer.bos_token = None
    folder = save_mesa(tmp_path / "model", tokenizer)
    ours = register()(pretrained=folder, device="cpu", batch_size=3, dtype="float32")
    prompts = ["<|endoftext|>the", "the quick brown", "a<|pad|>"]
    ids, mask = ours.tok_batch_encode(prompts)
    direct = Direct(folder)
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    assert rows == [[0, *direct.ids(prompt)] for prompt in prompts]

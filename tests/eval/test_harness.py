"""lm-evaluation-harness on a checkpoint folder, offline, against our own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mesa_eval.measures.perplexity import score_documents
from mesa_eval.reading.scoring import Scorer
from mesalm import MesaConfig, MesaForCausalLM
from mesalm.data.bpe import train_tokenizer

pytest.importorskip("lm_eval")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: "{between}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "task"
    folder.mkdir()
    items = [
        {"question": f"number {n}" * (1 + n % 3), "choices": ["red", "green", "dark blue"], "answer": n % 3}
        for n in range(6)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "colours.yaml").write_text(
        TASK.format(name="colours", path=folder / "items.jsonl", text="Q: {{question}}\\nA:", between=" ")
    )
    return folder


def save_mesa(
    folder: Path, tokenizer: PreTrainedTokenizerFast, mixers: str | tuple | list = ("mesa", "linear", "softmax")
) -> str:
    """Save a random model, by default a hybrid of all mixers, beside its tokenizer."""
    torch.manual_seed(7)
    config = MesaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        mixers=mixers if isinstance(mixers, str) else list(mixers),
        max_position_embeddings=128,
        initializer_range=0.3,
        tolerance=1e-6,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = MesaForCausalLM(config)
    # the padding's embedding starts at zero, which would hide padding that is not masked
    model.model.embed_tokens.weight.data[1] = model.model.embed_tokens.weight.data[2:].std() * torch.randn(32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["llama", "mesa"])
@pytest.mark.usefixtures("offline")
def test_the_harness_agrees_with_our_scores(kind: str, save_model, make, task_folder: Path, tmp_path: Path) -> None:
    from mesa_eval.harness import run_tasks

    tokenizer = make.tokenizer(merges_from="red green dark blue number " * 30, size=290)
    if kind == "mesa":
        model = save_mesa(tmp_path / "mesa", tokenizer)
    else:
        model = save_model("model", 7, tokenizer, length=128)
    scorer = Scorer.open(model, device="cpu", quiet=True)
    for batch_size in (1, 4):
        results = run_tasks(
            model,
            ["colours"],
            include_path=task_folder,
            own_tasks_only=True,
            batch_size=batch_size,
            bootstrap_iters=0,
            log_samples=True,
        )
        samples = results["samples"]["colours"]
        assert len(samples) == 6
        for sample in samples:
            pairs = [(request[0], request[1]) for request in (sample["arguments"])]
            ours = scorer.likelihoods(scorer.encode_pairs(pairs))
            theirs = [float(response[0][0]) for response in sample["resps"]]
            assert [likelihood.nats for likelihood in ours] == pytest.approx(theirs, abs=1e-4)
            greedy = [str(response[0][1]) == "True" for response in sample["resps"]]
            assert [likelihood.greedy for likelihood in ours] == greedy


KINDS = {
    "colours": ("multiple_choice", 'doc_to_choice: "{{choices}}"', "acc"),
    "whole": ("loglikelihood_rolling", "", "bits_per_byte"),
    "tales": ("generate_until", 'generation_kwargs: {until: ["z"], max_gen_toks: 6, do_sample: false}', "exact_match"),
}


@pytest.fixture
def task_kinds(task_folder: Path) -> Path:
    """Return a folder with a task of each kind that the harness batches, on items of different lengths."""
    for name, (kind, more, metric) in KINDS.items():
        lines = [
            f"task: {name}",
            "dataset_path: json",
            f"dataset_kwargs: {{data_files: {{test: {task_folder / 'items.jsonl'}}}}}",
            "test_split: test",
            f"output_type: {kind}",
            'doc_to_text: "Q: {{question}}\\nA:"' if kind != "loglikelihood_rolling" else 'doc_to_text: ""',
            'doc_to_target: "{{question}}"' if kind != "multiple_choice" else 'doc_to_target: "{{answer}}"',
            more,
            f"metric_list: [{{metric: {metric}}}]",
        ]
        (task_folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return task_folder


@pytest.mark.parametrize("mixers", ["mesa", ["mesa", "softmax"], "softmax"], ids=["mesa", "hybrid", "softmax"])
@pytest.mark.usefixtures("offline")
def test_no_figure_depends_on_the_batch(mixers: str | list[str], make, task_kinds: Path, tmp_path: Path) -> None:
    """Likelihoods are batched with padding on the right and no mask, generations with padding on the left and one."""
    from mesa_eval.harness import run_tasks

    tokenizer = make.tokenizer(merges_from="red green dark blue number " * 30, size=290)
    model = save_mesa(tmp_path / "model", tokenizer, mixers=mixers)
    found = {}
    for batch_size in (1, 8):
        results = run_tasks(
            model,
            list(KINDS),
            include_path=task_kinds,
            own_tasks_only=True,
            batch_size=batch_size,
            bootstrap_iters=0,
            log_samples=True,
        )
        found[batch_size] = {
            task: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
            for task, samples in results["samples"].items()
        }
    alone, together = found[1], found[8]
    assert all(len(alone[task]) == len(together[task]) == 6 for task in KINDS)
    assert alone["tales"] == together["tales"]
    assert len({str(response) for response in alone["tales"]}) > 1
    # a batch changes the order of float32 sums and nothing else
    for one, other in zip(alone["colours"], together["colours"], strict=True):
        assert [float(choice[0][0]) for choice in one] == pytest.approx(
            [float(choice[0][0]) for choice in other], abs=1e-4
        )
        assert [str(choice[0][1]) for choice in one] == [str(choice[0][1]) for choice in other]
    for one, other in zip(alone["whole"], together["whole"], strict=True):
        assert float(one[0][0]) == pytest.approx(float(other[0][0]), abs=1e-3)


@pytest.mark.usefixtures("offline")
def test_whole_documents_agree_too(save_model) -> None:
    from lm_eval.api.instance import Instance

    from mesa_eval.documents import Document
    from mesa_eval.harness import register

    model = save_model("model", 8, length=128)
    text = "a document that fits one window"
    harness = register()(pretrained=model, device="cpu", batch_size=2, dtype="float32")
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (theirs,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    (ours,) = score_documents(Scorer.open(model, device="cpu", quiet=True), [Document("a", "b", text)], 128)
    assert -ours.nats == pytest.approx(theirs, abs=1e-3)


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
def test_every_way_into_the_harness_reads_one_start_token(tmp_path: Path) -> None:
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
def test_a_prompt_begins_with_the_start_token_whatever_it_spells(tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("offline")
def test_few_shot_tasks_agree_to_the_last_item(make, class_file: str, tmp_path: Path) -> None:
    """Classes behind demonstrations (read from a cache here) and minimal pairs (behind nothing)."""
    from mesa_eval.harness import run_tasks
    from mesa_eval.measures.few_shot import score_task
    from mesa_eval.measures.task_measures import task_measures
    from mesa_eval.tasks import find_tasks
    from mesa_eval.tasks.minimal_pairs import MinimalPairTask
    from mesa_eval.tasks.task import FewShotProtocol, Item

    tokenizer = make.tokenizer(merges_from="text: eval label: red tan sky " * 30, size=290)
    model = save_mesa(tmp_path / "mesa", tokenizer)
    protocol = FewShotProtocol(
        shots=(2,),
        draws=1,
        rank_draws=1,
        queries=9,
        candidates=9,
        class_shots=(1,),
        group_pairs=None,
        variants=("true",),
    )
    pairs = tuple(Item(f"the label {n} is red", f"the label is {n} red", f"group {n % 2}") for n in range(6))
    tasks = [*find_tasks(class_file, [], 0), MinimalPairTask("pairs", (), pairs)]
    folder = tmp_path / "exported"
    folder.mkdir()
    scorer = Scorer.open(model, device="cpu", quiet=True)
    ours = {}
    for task in tasks:
        ours[task.name] = score_task(scorer, task, protocol, 128, seed=0)
        (level,) = ours[task.name].levels[""]
        lines = []
        for index in ours[task.name].queries:
            query = task.query(index, 0, level.shots, 9, seed=0)
            answer = query.candidates.index(query.answer)
            lines.append({"prompt": query.prompt, "choices": list(query.candidates), "answer": answer})
        path = folder / f"{task.name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{task.name}.yaml").write_text(TASK.format(name=task.name, path=path, text="{{prompt}}", between=""))
    results = run_tasks(
        model,
        [task.name for task in tasks],
        include_path=folder,
        own_tasks_only=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    for name, scores in ours.items():
        (level,) = scores.levels[""]
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(scores.queries)
        accuracy = next(measure for measure in task_measures(scores) if measure.key.endswith("/accuracy"))
        for sample, logs, won in zip(samples, level.ranked, accuracy.numerator, strict=True):
            assert logs[0] == pytest.approx([float(response[0][0]) for response in sample["resps"]], abs=1e-3)
            assert won == [sample["acc"]]


PASSAGES = {
    "last": """\
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "facts": """\
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{value}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 48, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.usefixtures("offline")
def test_passages_agree_to_the_last_item(make, tmp_path: Path) -> None:
    """Last words as the harness asks LAMBADA, and what is written behind a text up to the end of the line."""
    from mesa_eval.harness import run_tasks
    from mesa_eval.measures.few_shot import score_task
    from mesa_eval.measures.task_measures import task_measures
    from mesa_eval.protocols import PROTOCOLS
    from mesa_eval.tasks import find_tasks

    tokenizer = make.tokenizer(merges_from="the end of a long line\n" * 30, size=290)
    model = save_mesa(tmp_path / "mesa", tokenizer)
    scorer = Scorer.open(model, device="cpu", quiet=True)
    texts = [f"the{' long' * n} line\n has number {n * 7919} end{n}" for n in range(8)]
    # two of the last words are what the model would write
    texts[2:4] = [f"the long line ends {word}" for word in ("so", "x")]
    lines = {"last": [{"text": text} for text in texts]}
    lines["facts"] = [{"text": text, "value": f"line {n}"} for n, text in enumerate(texts)]
    folder, described = tmp_path / "asked", tmp_path / "described"
    folder.mkdir()
    described.mkdir()
    for name, own in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        (described / f"{name}.yaml").write_text(f"{head}test_split: test\n{PASSAGES[name]}")
    results = run_tasks(
        model, list(lines), include_path=described, own_tasks_only=True, bootstrap_iters=0, log_samples=True
    )
    theirs = {
        name: [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in results["samples"].items()
    }
    ours = {}
    for name in lines:
        (task,) = find_tasks(str(folder / f"{name}.jsonl"), [], 0)
        ours[name] = score_task(scorer, task, PROTOCOLS["full"].few_shot, 128, seed=0)
        assert ours[name].queries == list(range(8))
    (last,), (facts,) = ours["last"].levels[""], ours["facts"].levels[""]
    # float32 sums in another order
    assert [-row[0] for row in last.nats] == pytest.approx([float(nats) for nats, _ in theirs["last"]], abs=1e-3)
    assert [row[0] for row in last.exact] == [float(str(greedy) == "True") for _, greedy in theirs["last"]]
    measures = {measure.key.rsplit("/", 1)[1]: measure for measure in task_measures(ours["last"])}
    found = np.sum(measures["perplexity"].numerator) / np.sum(measures["perplexity"].denominator)
    assert np.exp(found) == pytest.approx(results["results"]["last"]["perplexity,none"], rel=1e-3)
    assert [row[0] for row in facts.written] == theirs["facts"]
    assert len(set(theirs["facts"])) > 1

"""lm-evaluation-harness on a checkpoint folder, offline, against our own scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mesa_eval import harness
from mesa_eval.harness import register
from mesa_eval.measures.perplexity import score_documents
from mesa_eval.reading.scoring import Scorer

pytest.importorskip("lm_eval", reason="in the extra eval")

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


def run_tasks(model: str, tasks: list[str], folder: Path, batch_size: int = 4) -> dict:
    """Run harness tasks of a folder on a model; the samples of each task come in the order of their items."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    scored = register()(pretrained=model, device="cpu", batch_size=batch_size, dtype="float32")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=scored, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    for samples in found["samples"].values():
        samples.sort(key=lambda sample: sample["doc_id"])
    return found


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


@pytest.mark.parametrize("kind", ["llama", "mesa"])
@pytest.mark.usefixtures("offline")
def test_the_harness_agrees_with_our_scores(
    kind: str, save_model, make, task_folder: Path, save_mesa, tmp_path: Path
) -> None:

    tokenizer = make.tokenizer(merges_from="red green dark blue number " * 30, size=290)
    if kind == "mesa":
        model = save_mesa(tmp_path / "mesa", tokenizer)
    else:
        model = save_model("model", 7, tokenizer, length=128)
    scorer = Scorer.open(model, device="cpu", quiet=True)
    samples = run_tasks(model, ["colours"], task_folder)["samples"]["colours"]
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


@pytest.mark.usefixtures("offline")
def test_no_figure_depends_on_the_batch(make, task_kinds: Path, save_mesa, tmp_path: Path) -> None:
    """Likelihoods are batched with padding on the right and no mask, generations with padding on the left and one."""
    tokenizer = make.tokenizer(merges_from="red green dark blue number " * 30, size=290)
    model = save_mesa(tmp_path / "model", tokenizer, mixers=["mesa", "softmax"])
    alone, together = (
        {task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()}
        for found in (run_tasks(model, list(KINDS), task_kinds, batch_size) for batch_size in (1, 8))
    )
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
def test_one_text_split_at_several_places_is_scored_at_each(save_model) -> None:
    """The windows of a document that repeats itself, and of answers that begin sooner or later."""
    from lm_eval.api.instance import Instance

    model = save_model("model", 8, length=64)
    harness = register()(pretrained=model, device="cpu", batch_size=8, dtype="float32")
    for kind, asked in (
        ("loglikelihood", [("ab", "cdef"), ("abcd", "ef"), ("abc", "def"), ("abcd", "eg")]),
        ("loglikelihood_rolling", [("0123456789abcdef" * 10,), ("0123456789",)]),
    ):
        requests = [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in asked]
        score = getattr(harness, kind)
        harness.batch_size_per_gpu = 8
        together = np.array(score(requests, disable_tqdm=True), dtype=float)
        harness.batch_size_per_gpu = 1
        alone = np.array([score([one], disable_tqdm=True)[0] for one in requests], dtype=float)
        np.testing.assert_allclose(together, alone, atol=1e-3)


@pytest.mark.usefixtures("offline")
def test_whole_documents_agree_too(save_model) -> None:
    from lm_eval.api.instance import Instance

    from mesa_eval.reading.documents import HeldOutDocument

    model = save_model("model", 8, length=128)
    text = "a document that fits one window"
    harness = register()(pretrained=model, device="cpu", batch_size=2, dtype="float32")
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (theirs,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    (ours,) = score_documents(Scorer.open(model, device="cpu", quiet=True), [HeldOutDocument("a", "b", text)], 128)
    assert -ours.nats == pytest.approx(theirs, abs=1e-3)


@pytest.mark.usefixtures("offline")
def test_few_shot_tasks_agree_to_the_last_item(make, class_file: str, save_mesa, tmp_path: Path) -> None:
    """Classes behind demonstrations (read from a cache here) and minimal pairs (behind nothing)."""
    from mesa_eval.measures.few_shot import score_task
    from mesa_eval.measures.task_measures import task_measures
    from mesa_eval.tasks import find_tasks
    from mesa_eval.tasks.minimal_pairs import MinimalPairTask
    from mesa_eval.tasks.task import FewShotSizes, Item

    tokenizer = make.tokenizer(merges_from="text: eval label: red tan sky " * 30, size=290)
    model = save_mesa(tmp_path / "mesa", tokenizer)
    sizes = FewShotSizes(
        shots=(2,),
        draws=1,
        queries=9,
        candidates=9,
        class_shots=(1,),
        group_pairs=None,
        variants=(),
    )
    pairs = tuple(Item(f"the label {n} is red", f"the label is {n} red", f"group {n % 2}") for n in range(6))
    tasks = [*find_tasks(class_file, [], 0), MinimalPairTask("pairs", (), pairs)]
    folder = tmp_path / "exported"
    folder.mkdir()
    scorer = Scorer.open(model, device="cpu", quiet=True)
    ours = {}
    for task in tasks:
        ours[task.name] = score_task(scorer, task, sizes, 128, seed=0)
        (level,) = ours[task.name].by_variant[""]
        lines = []
        for index in ours[task.name].queries:
            query = task.query(index, 0, level.shots, 9, seed=0)
            answer = query.candidates.index(query.answer)
            lines.append({"prompt": query.prompt, "choices": list(query.candidates), "answer": answer})
        path = folder / f"{task.name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{task.name}.yaml").write_text(TASK.format(name=task.name, path=path, text="{{prompt}}", between=""))
    results = run_tasks(model, [task.name for task in tasks], folder)
    for name, scores in ours.items():
        (level,) = scores.by_variant[""]
        samples = results["samples"][name]
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
def test_passages_agree_to_the_last_item(make, save_mesa, tmp_path: Path) -> None:
    """Last words as the harness asks LAMBADA, and what is written behind a text up to the end of the line."""
    from mesa_eval.measures.few_shot import score_task
    from mesa_eval.measures.suites import find_suite
    from mesa_eval.measures.task_measures import task_measures
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
    results = run_tasks(model, list(lines), described)
    theirs = {name: [sample["resps"][0][0] for sample in samples] for name, samples in results["samples"].items()}
    ours = {}
    for name in lines:
        (task,) = find_tasks(str(folder / f"{name}.jsonl"), [], 0)
        ours[name] = score_task(scorer, task, find_suite("full").few_shot, 128, seed=0)
        assert ours[name].queries == list(range(8))
    (last,), (facts,) = ours["last"].by_variant[""], ours["facts"].by_variant[""]
    # float32 sums in another order
    assert [-row[0] for row in last.nats] == pytest.approx([float(nats) for nats, _ in theirs["last"]], abs=1e-3)
    assert [row[0] for row in last.exact] == [float(str(greedy) == "True") for _, greedy in theirs["last"]]
    measures = {measure.key.rsplit("/", 1)[1]: measure for measure in task_measures(ours["last"])}
    found = np.sum(measures["perplexity"].numerator) / np.sum(measures["perplexity"].denominator)
    assert np.exp(found) == pytest.approx(results["results"]["last"]["perplexity,none"], rel=1e-3)
    assert [row[0] for row in facts.written] == theirs["facts"]
    assert len(set(theirs["facts"])) > 1


def test_what_the_harness_lacks_is_not_read_as_its_absence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "lm_eval.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'no_such_module'"):
        harness.register.__wrapped__()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="lm-evaluation-harness is not installed"):
        harness.register.__wrapped__()

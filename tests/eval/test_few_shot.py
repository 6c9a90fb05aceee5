"""Prompts to the letter, shots, demonstrations, and scores at chance and at certainty."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mesa_eval.measures.few_shot import CannotAskError, score_task
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.reading.documents import HeldOutDocument, read_documents
from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks import find_tasks
from mesa_eval.tasks.key_value_recall import RecallTask
from mesa_eval.tasks.task import FewShotSizes, Item, Task

SIZES = FewShotSizes(shots=(0, 1, 2, 4), draws=3, queries=10, candidates=5, class_shots=(0, 1, 2), entries=(4, 8))
PAIRS = Task(
    "pairs",
    (Item("up", "down"), Item("in", "out")),
    (Item("hot", "cold"), Item("wet", "dry"), Item("old", "young")),
)


def find_task(name: str, documents: list[HeldOutDocument], seed: int) -> Task:
    """Return the one task of a name."""
    (task,) = find_tasks(name, documents, seed)
    return task


class LookUp(torch.nn.Module):
    """Go on, with certainty, as after the longest earlier stretch that ends like the prompt."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 258)
        for row, tokens in enumerate(input_ids.numpy()):
            same = np.zeros(len(tokens) + 1, dtype=int)  # how long is the stretch that ends before each token alike
            for end, token in enumerate(tokens):
                same[1:] = np.where(tokens == token, same[:-1] + 1, 0)
                earlier = same[1 : end + 1]
                if earlier.any():
                    logits[row, end, tokens[earlier.argmax() + 1]] = 50.0
        return SimpleNamespace(logits=logits)


def test_pair_prompts_to_the_letter() -> None:
    shown = [Item("up", "down"), Item("in", "out")]
    shared = "Q: up\nA: down\n\nQ: in\nA: out\n\n"
    assert PAIRS.prompt(shown, "hot") == (f"{shared}Q: hot\nA:", shared)
    query = PAIRS.query(0, 0, 0, 3, seed=1)
    assert query.prompt == "Q: hot\nA:"
    assert query.answer == " cold"
    assert query.candidates[0] == " cold"
    assert set(query.candidates) == {" cold", " dry", " young"}
    assert PAIRS.query(0, 0, 0, 2, seed=1).candidates in {(" cold", " dry"), (" cold", " young")}


def test_class_prompts_to_the_letter(class_file: str) -> None:
    task = find_task(class_file, [], 0)
    assert task.prompt([Item("a", "red")], "b")[0] == "text: a\nlabel: red\n\ntext: b\nlabel:"
    assert task.query(0, 0, 2, 99, seed=0).candidates == (" red", " tan", " sky")
    for draw in range(4):
        shown = task.demonstrations(0, draw, 2, seed=0)
        assert sorted(item.output for item in shown[:3]) == ["red", "sky", "tan"]
        assert sorted(item.output for item in shown[3:]) == ["red", "sky", "tan"]
    assert task.majority(list(range(15))) == pytest.approx(11 / 15)


def test_recall_shows_the_answer_once(text_file: str) -> None:
    task = find_task("key_value_recall", read_documents([text_file]), 0)
    query = task.query(3, 1, 4, 3, seed=0)
    item = task.evaluation[3]
    assert query.prompt.count(f"Q: {item.input}\nA: {item.output}\n\n") == 1
    assert query.prompt.endswith(f"Q: {item.input}\nA:")
    assert query.prompt.count("Q: ") == 5
    values = [line[2:] for line in query.prompt.split("\n") if line.startswith("A: ")]
    assert set(query.candidates) <= set(values)
    places = {task.demonstrations(3, draw, 4, seed=0).index(item) for draw in range(60)}
    assert places == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["copying", "key_value_recall", "case_change", "phonebook"])
def test_built_in_tasks_depend_on_text_and_seed_alone(name: str, text_file: str) -> None:
    documents = read_documents([text_file])
    task = find_task(name, documents, 0)
    assert task.fingerprint() == find_task(name, list(reversed(documents)), 0).fingerprint()
    assert task.fingerprint() != find_task(name, documents, 1).fingerprint()
    assert not {item.input for item in task.pool} & {item.input for item in task.evaluation}
    with pytest.raises(ValueError, match="give more text"):
        find_task(name, [HeldOutDocument("a", "b", "too little text")], 0)


def test_case_change_takes_identifiers_where_there_are_some() -> None:
    names = [f"read_{a}{b}_file" for a in "abcdefgh" for b in "klmnopq"]
    task = find_task("case_change", [HeldOutDocument("a", "b", " = ".join(names))], 0)
    assert not task.notes
    assert all(item.output == f"read{item.input[5:7].capitalize()}File" for item in task.evaluation)


def test_a_uniform_model_is_at_chance(make, tokenizer, pair_file: str, class_file: str) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    for path, chance, shots in ((pair_file, 1 / 5, [0, 1, 2, 4]), (class_file, 1 / 3, [0, 1, 2])):
        scores = score_task(scorer, find_task(path, [], 0), SIZES, 256, seed=0)
        assert [level.shots for level in scores.by_variant[""]] == shots
        for level in scores.by_variant[""]:
            assert np.sum(level.nats) == pytest.approx(np.sum(level.bytes) * np.log(258), rel=1e-6)
            assert np.shape(level.nats) == (10, 3)
        for measure in task_measures(scores):
            if measure.unit.startswith("accuracy") and "letters" not in measure.unit:
                # candidates of one length: all scores are tied
                assert np.sum(measure.numerator) / np.sum(measure.denominator) == pytest.approx(chance)
                # the null is what a model scores that names the commonest answer, where that is more
                assert measure.chance >= chance - 1e-12
    ranked = score_task(scorer, find_task(pair_file, [], 0), SIZES, 256, seed=0).by_variant[""][0].ranked
    assert np.shape(ranked) == (10, 3, 5)


def test_a_model_that_looks_up_recalls_everything(tokenizer) -> None:
    items = tuple(Item(f"k{n:02d}", f"{chr(97 + n)}{chr(103 + n)}") for n in range(8))
    scorer = Scorer(LookUp(), tokenizer, quiet=True)
    scores = score_task(scorer, RecallTask("recall", (), items), SIZES, 256, seed=0)
    levels = scores.by_variant[""]
    assert [level.shots for level in levels] == [0, 1, 2, 4]
    assert scores.record.example.count("Q: ") == 2
    assert scores.record.example.split("Q: ")[1].split("\n")[:2] == scores.record.example.split("Q: ")[2].split("\n")
    for level in levels[1:]:
        assert np.mean(level.exact) == 1.0
        assert np.mean(level.nats) == pytest.approx(0, abs=1e-6)
    for measure in task_measures(scores):
        value = np.sum(measure.numerator) / np.sum(measure.denominator)
        if measure.x and "shuffled" not in measure.unit:
            assert value == pytest.approx(0.0 if measure.better == "lower" else 1.0, abs=1e-6)


def test_shots_are_cut_where_a_prompt_does_not_fit(make, tokenizer, pair_file: str) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    task = find_task(pair_file, [], 0)
    longest = max(len(task.query(index, draw, 2, 5, 0).prompt.encode()) for index in range(20) for draw in range(3))
    # one start token; the last of the answer's four bytes is predicted, not read
    fits, short = longest + 4, longest + 3
    sizes = FewShotSizes(shots=(0, 1, 2, 4), draws=3, queries=20, candidates=5)
    assert score_task(scorer, task, sizes, fits, seed=0).record.cut == [4]
    scores = score_task(scorer, task, sizes, short, seed=0)
    assert scores.record.cut == [2, 4]
    assert [level.shots for level in scores.by_variant[""]] == [0, 1]
    with pytest.raises(CannotAskError, match="at 0 shots a prompt exceeds"):
        score_task(scorer, task, sizes, 5, seed=0)


def test_shots_end_where_the_pool_does(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    assert score_task(scorer, PAIRS, SIZES, 512, seed=0).record.cut == [4]


def test_items_do_not_depend_on_the_tokenizer(make, pair_file: str) -> None:
    seen = []

    class Recorder(Scorer):
        def encode_pairs(self, pairs):
            seen[-1].extend(pairs)
            return super().encode_pairs(pairs)

    for tokenizer in (make.tokenizer(), make.tokenizer(merges_from="Q: abc\nA: abc\n\n" * 30, size=280)):
        seen.append([])
        vocabulary = len(tokenizer)
        scorer = Recorder(make.table(torch.zeros(vocabulary, vocabulary)), tokenizer, quiet=True)
        score_task(scorer, find_task(pair_file, [], 0), SIZES, 512, seed=0)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("lines", "labels", "message"),
    [
        (["{"], None, r"bad\.jsonl:1: broken JSON"),
        ([{"input": "a", "output": "b", "split": "train"}], None, "'pool' or 'eval'"),
        ([{"input": "a", "split": "pool"}], None, "'output'"),
        ([{"input": "a", "output": "b", "split": "eval"}], None, "no line of split 'pool'"),
        (
            [{"input": "a", "output": "b", "split": "eval"}, {"input": "a", "output": "c", "split": "pool"}],
            None,
            "in pool and in eval",
        ),
        ([{"input": "a", "output": "b", "split": "eval"}], ["x"], "at least two"),
        (
            [{"input": "a", "output": "b", "split": "eval"}, {"input": "c", "output": "x", "split": "pool"}],
            ["x", "y"],
            "'b' is not in",
        ),
        (
            [{"input": "a", "output": "x", "split": "eval"}, {"input": "c", "output": "x", "split": "pool"}],
            ["x", "y"],
            "no line of the pool has the label 'y'",
        ),
        ([], None, "has no lines"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, lines, labels, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    if labels is not None:
        (tmp_path / "bad.labels.json").write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=message) as caught:
        find_task(str(path), [], 0)
    assert "\n" not in str(caught.value)

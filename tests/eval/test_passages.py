"""Texts asked for a value that stands in them, or for their last word: by hand, and where they come from."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from mesa_eval.comparison.rows import build_comparison
from mesa_eval.evaluate import evaluate
from mesa_eval.measures.few_shot import CannotAskError, contains, score_task
from mesa_eval.measures.scores import Measure
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.reading.scoring import Scorer
from mesa_eval.report.tables import print_comparison
from mesa_eval.report.wording import summarise
from mesa_eval.tasks import find_tasks
from mesa_eval.tasks.key_value_recall import RecallTask
from mesa_eval.tasks.passages import LastWordTask, TextRecallTask
from mesa_eval.tasks.task import FewShotSizes, Item

SIZES = FewShotSizes(shots=(1, 2), draws=2, queries=4, candidates=3, passages=10, variants=())


def values(measures: list[Measure]) -> dict[str, float]:
    """Return the value of each measure by the end of its key."""
    found = {}
    for measure in measures:
        ratio = float(np.sum(measure.numerator) / np.sum(measure.denominator))
        found[measure.key.rsplit("/", 1)[1]] = math.exp(ratio) if measure.transform == "exp" else ratio
    return found


class Writer(torch.nn.Module):
    """Write a given text behind each prompt; give every token the probability 1/V."""

    def __init__(self, written: dict[str, str], tokenizer) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.written, self.tokenizer, self.most = written, tokenizer, []

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 258))

    def generate(self, ids: torch.Tensor, *, max_new_tokens: int, eos_token_id: list[int], **_) -> torch.Tensor:
        rows = []
        for row in ids.tolist():
            new = self.tokenizer(self.written[self.tokenizer.decode(row[1:])]).input_ids[:max_new_tokens]
            stops = [place for place, token in enumerate(new) if token in eos_token_id]
            new = new[: stops[0] + 1] if stops else new
            rows.append(row + new)
        self.most.append(max_new_tokens)
        longest = max(map(len, rows))
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def test_a_value_counts_where_the_line_that_is_written_holds_it(tokenizer) -> None:
    items = {
        "one Key:": ("Value", " the VALUE is\nnot"),  # whatever the case
        "two Key:": ("later", " no\nlater"),  # behind the line's end
        "six Key:": ("far", " " + "x" * 60 + "far"),  # behind the 48 tokens
        "ten Key:": ("12 b", " 12 b\n"),
    }
    task = TextRecallTask("facts", (), tuple(Item(text, value) for text, (value, _) in items.items()))
    model = Writer({text: written for text, (_, written) in items.items()}, tokenizer)
    scores = score_task(scorer := Scorer(model, tokenizer, quiet=True), task, SIZES, 100, seed=0)
    (level,) = scores.by_variant[""]
    assert level.written == [[" the VALUE is"], [" no"], [" " + "x" * 47], [" 12 b"]]
    assert level.contains == [[1.0], [0.0], [0.0], [1.0]]
    found = values(task_measures(scores))
    assert found.keys() == {"answer", "contains", "exact"}
    assert found["contains"] == 0.5
    assert found["answer"] == pytest.approx(math.log2(258))
    # a start token and eight bytes; behind them all but the last of what is scored or written
    scored = sum(9 + len(value) for value, _ in items.values())
    assert scorer.tokens_run == scored + sum(9 + written - 1 for written in (len(" the VALUE is\n"), 4, 48, 6))
    assert contains("a Bcd", " bCD") == 1.0
    assert contains("a Bcd", " d a") == 0.0


def test_writing_ends_where_the_window_does(tokenizer) -> None:
    model = Writer({"one Key:": " " + "y" * 90}, tokenizer)
    task = TextRecallTask("facts", (), (Item("one Key:", "yy"),))
    scores = score_task(Scorer(model, tokenizer, quiet=True), task, SIZES, 20, seed=0)
    # nine tokens of the prompt; of what is written the last token is not read
    assert model.most == [12]
    assert scores.by_variant[""][0].written == [[" " + "y" * 11]]
    with pytest.raises(CannotAskError, match="no prompt fits"):
        score_task(Scorer(model, tokenizer, quiet=True), task, SIZES, 10, seed=0)


def test_texts_longer_than_the_window_are_left_out_and_counted(make, tokenizer) -> None:
    items = tuple(Item("w" * length, "end") for length in (5, 40, 6, 41))
    task = LastWordTask("ends", (), items)
    scores = score_task(Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True), task, SIZES, 44, seed=0)
    # one start token, the text, and " en" are read
    assert scores.queries == [0, 1, 2]
    assert scores.left_out == {"": 1}


def test_keys_and_values_are_looked_for_in_what_is_written(tokenizer) -> None:
    items = tuple(Item(f"k{n}", f"v{n}") for n in range(4))
    task = RecallTask("recall", (), items)
    sizes = FewShotSizes(shots=(2,), draws=1, queries=4, candidates=2, variants=())
    asked = [task.query(index, 0, 2, 2, seed=0) for index in range(4)]
    model = Writer(
        {query.prompt: f" is{query.answer if n else ' nothing'}.\nQ:" for n, query in enumerate(asked)}, tokenizer
    )
    found = values(task_measures(score_task(Scorer(model, tokenizer, quiet=True), task, sizes, 100, seed=0)))
    assert found["contains"] == 0.75
    assert found["exact"] == 0.0


def test_a_model_that_is_sure_of_the_answer_is_not_asked_to_write(make, tokenizer) -> None:
    colon, space, y, e, s = tokenizer(": yes").input_ids
    table = torch.zeros(258, 258)
    table[colon, space] = table[space, y] = table[y, e] = table[e, s] = 9.0
    model = make.table(table)
    asked: list[int] = []
    model.generate = lambda ids, **_: asked.append(len(ids)) or torch.cat((ids, ids[:, :1]), 1)
    task = TextRecallTask("sure", (), (Item("go:", "yes"), Item("no:", "not")))
    (level,) = score_task(Scorer(model, tokenizer, quiet=True), task, SIZES, 60, seed=0).by_variant[""]
    assert asked == [1]
    assert level.written == [[" yes"], [""]]
    assert level.contains == [[1.0], [0.0]]


def test_a_model_that_cannot_write_is_asked_the_rest(make, tokenizer) -> None:
    task = TextRecallTask("facts", (), (Item("go:", "yes"),))
    scores = score_task(Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True), task, SIZES, 60, seed=0)
    assert values(task_measures(scores)).keys() == {"answer", "exact"}


def test_the_last_word_by_hand(make, tokenizer) -> None:
    e, n, d, space = tokenizer("end ").input_ids
    table = torch.zeros(258, 258)
    table[space, e] = table[e, n] = table[n, d] = table[tokenizer("x").input_ids[0], space] = 9.0
    task = LastWordTask("lambada", (), (Item("a x", "end"), Item("a y", "end"), Item("a x", "end.")))
    scores = score_task(Scorer(make.table(table), tokenizer, quiet=True), task, SIZES, 64, seed=0)
    sure, even = math.log(math.exp(9) + 257) - 9, math.log(258)
    nats = [4 * sure, 3 * sure + even, 4 * sure + even]
    found = values(task_measures(scores))
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / 3), rel=1e-5)
    assert found["answer"] == pytest.approx(sum(nats) / math.log(2) / 13, rel=1e-5)
    assert found["greedy"] == pytest.approx(1 / 3)
    measures = task_measures(scores)
    assert not any(measure.primary for measure in measures)
    assert [measure.any_tokenizer for measure in measures] == [True, True, False]


def write_lines(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_files_of_passages_tell_their_kind(tmp_path: Path) -> None:
    (words,) = find_tasks(write_lines(tmp_path / "words.jsonl", [{"text": "He said\n to me  twice\n"}]), [], 0)
    assert (words.kind, words.evaluation) == ("last word", (Item("He said\n to me ", "twice"),))
    (facts,) = find_tasks(write_lines(tmp_path / "facts.jsonl", [{"text": "a: b\na:", "value": "b"}]), [], 0)
    assert (facts.kind, facts.evaluation) == ("text recall", (Item("a: b\na:", "b"),))
    assert facts.query(0, 0, 0, 1, seed=0).prompt == "a: b\na:"
    mixed = write_lines(tmp_path / "mixed.jsonl", [{"input": "a:", "output": "b"}])
    with pytest.raises(ValueError, match="'split'"):
        find_tasks(mixed, [], 0)
    (tmp_path / "mixed.yaml").write_text("kind: text-recall\nname: own\n")
    (own,) = find_tasks(mixed, [], 0)
    assert (own.name, own.kind, own.evaluation) == ("own", "text recall", (Item("a:", "b"),))
    with pytest.raises(ValueError, match=r"bare\.jsonl:2: the text 'alone' has no word before"):
        find_tasks(write_lines(tmp_path / "bare.jsonl", [{"text": "one two"}, {"text": "alone"}]), [], 0)
    with pytest.raises(ValueError, match=r"half\.jsonl:2: needs the text field 'value'"):
        find_tasks(write_lines(tmp_path / "half.jsonl", [{"text": "a", "value": "b"}, {"text": "c"}]), [], 0)


def test_datasets_of_passages_keep_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "test.jsonl", [{"story": "one\n two  three", "fact": "two"}])
    (words,) = find_tasks(f"hub:{tmp_path / 'set'}?kind=last-word&input=story", [], 0)
    assert words.evaluation == (Item("one\n two ", "three"),)
    (facts,) = find_tasks(f"hub:{tmp_path / 'set'}?kind=text-recall&input=story&output=fact", [], 0)
    assert facts.evaluation == (Item("one\n two  three", "two"),)


def test_passages_stand_in_a_comparison_by_name(save_model, text_file: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "words.jsonl", [{"text": f"some text {n} end"} for n in range(12)])
    write_lines(tmp_path / "facts.jsonl", [{"text": f"key: {n}\nkey:", "value": str(n)} for n in range(12)])
    tasks = [str(tmp_path / f"{name}.jsonl") for name in ("words", "facts")]
    models = [save_model(name, seed) for seed, name in enumerate(("one", "two"))]
    scores = evaluate(models, texts=[text_file], tasks=[*tasks, "phonebook"], quiet=True, device="cpu")
    comparison = build_comparison(scores, 1)
    rows = {row.key: row for row in comparison.rows}
    assert comparison.tested_row("words") == rows["task/words/0/greedy"]
    assert comparison.tested_row("facts") == rows["task/facts/0/contains"]
    assert rows["task/words/0/perplexity"].differences[0].interval is not None
    assert not any(row.primary for row in comparison.rows if row.section.startswith("task/"))
    shown = io.StringIO()
    print_comparison(comparison, summarise(comparison), Console(file=shown, width=200))
    stands = "text as it stands"
    for line in (f"words, {stands}: accuracy, greedy", f"facts, {stands}: answer contained", "  answer, bits per byte"):
        assert f"│ {line} " in shown.getvalue()

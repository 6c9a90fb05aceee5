"""Prompt tuning through the command, and its gain over plain shots in a comparison on the same queries."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from mesa_eval.reading.model_source import find_model, training_length
from mesa_eval.reading.scoring import Scorer
from mesa_eval.tuning_rows import tuning_rows, tuning_tasks
from mesalm.cli import main
from mesalm.data.bpe import train_tokenizer
from mesalm.data.episodes import HELD_OUT, HELD_OUT_LABELS, TRAINING
from mesalm.hub.open_model import open_tokenizer


def test_rows_come_from_the_pool_and_are_scored_on_the_answer(
    save_model: Callable[..., str], pair_file: str, class_file: str
) -> None:
    scorer = Scorer.open(save_model("base", 0, length=200), device="cpu", quiet=True)
    for file in (pair_file, class_file):
        (task,) = tuning_tasks([file], 0)
        rows = tuning_rows(scorer, [task], [0, 2], 30, seed=1)
        assert rows == tuning_rows(scorer, [task], [0, 2], 30, seed=1)
        assert rows != tuning_rows(scorer, [task], [0, 2], 30, seed=2)
        pool = {(item.input, item.output) for item in task.pool}
        counts = set()
        for tokens, first in rows:
            prompt, answer = (scorer.tokenizer.decode(part) for part in (tokens[1:first], tokens[first:]))
            *shown, asked = prompt.split("\n\n")
            counts.add(len(shown))
            question = asked.split("\n")[0].split(": ")[1]
            assert (question, answer.strip()) in pool
        assert counts == {0, 2}
    with pytest.raises(ValueError, match="at most 11 demonstrations, not 12"):
        tuning_rows(scorer, tuning_tasks([class_file], 0), [12], 2, seed=0)


def test_a_mixture_holds_as_many_prompts_of_each_task(
    save_model: Callable[..., str], pair_file: str, class_file: str, tmp_path: Path
) -> None:
    scorer = Scorer.open(save_model("base", 0, length=200), device="cpu", quiet=True)
    folder = tmp_path / "files"
    folder.mkdir()
    for file in (pair_file, class_file, class_file.replace(".jsonl", ".labels.json")):
        shutil.copy(file, folder)
    lines = [{"input": f"right {n}", "output": f"wrong {n}", "split": "eval", "paradigm": "one"} for n in range(3)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = tuning_tasks([str(folder)], 0)  # minimal pairs have no pool to learn from
    assert [task.name for task in tasks] == ["colour", "letters"]
    assert tasks == tuning_tasks([class_file, pair_file], 0)
    rows = tuning_rows(scorer, tasks, [0, 1], 21, seed=1)
    begins = [scorer.tokenizer.decode(tokens[1:3]) for tokens, _ in rows]
    assert begins == ["te"] * 11 + ["Q:"] * 10
    assert rows[:11] == tuning_rows(scorer, tasks[:1], [0, 1], 11, seed=1)
    assert rows[11:] == tuning_rows(scorer, tasks[1:], [0, 1], 10, seed=1)
    with pytest.raises(ValueError, match="at least one per task"):
        tuning_rows(scorer, tasks, [0], 1, seed=0)
    with pytest.raises(ValueError, match="two tasks are named 'letters'"):
        tuning_tasks([str(folder), pair_file], 0)
    with pytest.raises(ValueError, match="pairs has none"):
        tuning_tasks([str(folder / "pairs.jsonl")], 0)
    with pytest.raises(ValueError, match=r"copying: a prefix is learned .*; copying has none"):
        tuning_tasks(["copying"], 0)


def test_a_tuned_folder_is_compared_with_its_model(
    save_model: Callable[..., str],
    pair_file: str,
    class_file: str,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One prefix learnt from a mixture lowers what the answers of each of its tasks cost."""
    base, out = save_model("base", 0, length=40), str(tmp_path / "tuned")
    arguments = [
        "tune",
        base,
        "--task",
        pair_file,
        "--task",
        class_file,
        "--out",
        out,
        "--device",
        "cpu",
        "vectors=4",
        "steps=40",
    ]
    assert main([*arguments, "rows=60", "valid_rows=8", "batch_rows=8", "shots=[0,1]"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\d prompts exceed the window of 36 tokens: left out", said)
    assert "learning one prefix from letters, colour" in said
    assert f"mesalm compare {out} {base} --task {pair_file} --task {class_file}" in said
    record = json.loads((tmp_path / "tuned" / "prefix.json").read_text())
    assert list(record["tasks"]) == ["letters", "colour"]
    compared = ["compare", out, base, "--text", text_file, "--task", pair_file, "--task", class_file, "--device", "cpu"]
    assert main([*compared, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for name in ("letters", "colour"):
        (row,) = (row for row in report["rows"] if row["key"] == f"task/{name}/0/answer")
        gain = row["differences"][0]["interval"]
        assert gain["value"] < -0.5  # bits per byte of the answers, which the plain random model cannot know
        assert gain["high"] < 0
    assert main(["sample", out, "--prompt", "Q: bcd1", "--tokens", "3", "--temperature", "0"]) == 0
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "holds a finished prefix" in capsys.readouterr().err


def test_a_prefix_of_episodes_is_learned_from_training_words_and_labels_alone(save_model: Callable[..., str]) -> None:
    scorer = Scorer.open(save_model("base", 0, length=400), device="cpu", quiet=True)
    for name, shots in (("attribute_rules_of_three", [2, 6]), ("new_labels", [1, 4])):
        (task,) = tuning_tasks([name], 0)
        assert len(tuning_rows(scorer, [task], shots, 3, seed=0)) > 0
        random = np.random.RandomState(0)
        texts = [task.tuning_text(shots, random) for _ in range(20)]
        assert len(set(texts)) == 20
        for prompt, answer in texts:
            words = set(prompt.replace("=", " ").split()) | {answer.strip()}
            assert not words & {*HELD_OUT.words, *HELD_OUT_LABELS.labels}
            assert words & set(TRAINING.words)
        counts = {prompt.count("\n") for prompt, _ in texts}
        assert counts == ({2, 6} if name == "attribute_rules_of_three" else {24})
    with pytest.raises(ValueError, match="at most 7 demonstrations, not 8"):
        tuning_rows(scorer, tuning_tasks(["attribute_rules_of_three"], 0), [8], 2, seed=0)


def test_a_prefix_takes_its_vectors_off_a_table_of_positions(tmp_path: Path, pair_file: str, text_file: str) -> None:
    """GPT-2 has no position for a token past its table."""
    tokenizer = train_tokenizer([Path(text_file).read_text()], 300)
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    base, out = str(tmp_path / "gpt2"), str(tmp_path / "tuned")
    sizes = ["vectors=16", "steps=2", "rows=20", "valid_rows=4", "batch_rows=4", "shots=[0,1,2]"]
    assert main(["tune", base, "--task", pair_file, "--out", out, "--device", "cpu", *sizes]) == 0
    scores = ["--out", str(tmp_path / "scores")]
    assert main(["eval", out, "--text", text_file, "--task", pair_file, "--device", "cpu", *scores]) == 0
    source = find_model(out)
    assert training_length(source, open_tokenizer(out)) == 48

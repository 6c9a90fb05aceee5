"""Tasks from files with settings beside them, and from datasets of a local folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mesa_eval.measures.plan import Request, make_plan
from mesa_eval.tasks import find_tasks


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a dataset folder with a train and a test split, as the Hub holds them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "topics"
    folder.mkdir()
    labels = [f"topic{n}" for n in range(6)]
    for split, count in (("train", 24), ("test", 13)):
        lines = [{"sentence": f"{split} line\n {n}", "topic": labels[n % 6], "more": n} for n in range(count)]
        if split == "test":
            lines[0]["sentence"] = "train line\n 3"
        write_lines(folder / f"{split}.jsonl", lines)
    return folder


def test_hub_datasets_by_name_and_columns(dataset: Path) -> None:
    plain, episodes = find_tasks(f"hub:{dataset}?input=sentence&output=topic&kind=class&name=t", [], 0)
    assert (plain.name, plain.kind, episodes.name, episodes.kind) == ("t", "class", "t_5way", "episodes")
    assert plain.labels == tuple(f"topic{n}" for n in range(6))
    assert (len(plain.pool), len(plain.evaluation)) == (24, 12)  # one line of test is in train too
    assert plain.pool[0].input == "train line 0"
    (pairs,) = find_tasks(f"hub:{dataset}?input=sentence&output=topic&most=7&eval=test", [], 0)
    assert (pairs.name, pairs.kind, len(pairs.pool)) == ("topics", "pair", 7)


def test_a_class_column_is_read_by_its_names(dataset: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in ("train", "test"):
        rows = {"text": [f"{split} {n}" for n in range(4)], "label": [0, 1, 1, 0]}
        (tmp_path / "saved").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "saved" / f"{split}.parquet")
    (task,) = find_tasks(f"hub:{tmp_path / 'saved'}?input=text&output=label", [], 0)
    assert (task.kind, task.labels) == ("class", ("no", "yes"))
    assert [item.output for item in task.pool] == ["no", "yes", "yes", "no"]


def test_a_yaml_names_a_dataset(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"dataset: {dataset}\ninput: sentence\noutput: topic\ntemplate: '{{input}} -> {{output}};'\n")
    (task,) = find_tasks(str(path), [], 0)
    assert task.prompt([task.pool[0]], "x") == ("train line 0 -> topic0;x ->", "train line 0 -> topic0;")


def test_settings_beside_a_file_map_its_columns(tmp_path: Path) -> None:
    lines = [{"good": f"g{n}", "bad": f"b{n}", "split": "eval", "paradigm": f"p{n % 2}"} for n in range(4)]
    write_lines(tmp_path / "pairs.jsonl", lines)
    (tmp_path / "pairs.yaml").write_text("input: good\noutput: bad\n")
    (task,) = find_tasks(str(tmp_path / "pairs.jsonl"), [], 0)
    assert (task.kind, task.group(1)) == ("minimal pair", "p1")
    (tmp_path / "pairs.yaml").write_text("input: good\noutput: bad\nkind: pair\n")
    with pytest.raises(ValueError, match="no line of split 'pool'"):
        find_tasks(str(tmp_path / "pairs.jsonl"), [], 0)


def test_a_folder_stands_for_its_files(pair_file: str, class_file: str, tmp_path: Path) -> None:
    assert [task.name for task in find_tasks(str(Path(pair_file).parent), [], 0)] == ["colour", "letters"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="contains no"):
        find_tasks(str(tmp_path / "nothing"), [], 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:{folder}?input=nothing&output=topic", "no column 'nothing' for input; the columns are"),
        ("hub:{folder}?input=sentence&output=topic&eval=gone", "split 'gone' cannot be loaded"),
        ("hub:{folder}/away?input=sentence", "cannot be loaded"),
        ("hub:{folder}?inputs=sentence", "inputs"),
        ("hub:{folder}?template=x", "template"),
        ("hub:{folder}?input=sentence&output=topic&labels=topic1", "labels"),
    ],
)
def test_a_wrong_dataset_gets_one_line(dataset: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_tasks(name.format(folder=dataset), [], 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([{"text": "The sky is", "value": "blue"}, {"text": "Snow is", "value": " "}], "", "2: .* has a blank value"),
        (
            [
                {"input": "bread, salt", "output": "salt", "split": "pool"},
                {"input": "rain, snow", "output": "hail", "split": "eval"},
            ],
            "kind: choice",
            "'hail' is not among the words that 'rain, snow' lists",
        ),
        *(
            (
                [
                    {"input": "up", "output": "down", "split": "pool"},
                    {"input": "left", "output": output, "split": "eval"},
                ],
                "",
                f"every output must be text without white space around it, but {fault}",
            )
            for output, fault in (("", "that of 'left' is blank"), (" right", "' right' has white space at an end"))
        ),
    ],
)
def test_what_cannot_be_answered_gets_one_line(lines: list[dict], settings: str, message: str, tmp_path: Path) -> None:
    """A blank value is in whatever a model writes; an answer that is no candidate has no score."""
    write_lines(tmp_path / "own.jsonl", lines)
    (tmp_path / "own.yaml").write_text(settings)
    with pytest.raises(ValueError, match=message) as caught:
        find_tasks(str(tmp_path / "own.jsonl"), [], 0)
    assert "\n" not in str(caught.value)


def test_questions_with_several_answers_are_told_of(tmp_path: Path) -> None:
    """Another right answer is a wrong candidate, which no score shows."""
    asked = [("red and", "blue"), ("red and", "green"), ("one and", "two"), ("one and", "two")]
    lines = [{"input": "up and", "output": "down", "split": "pool"}]
    lines += [{"input": question, "output": answer, "split": "eval"} for question, answer in asked]
    write_lines(tmp_path / "own.jsonl", lines)
    (task,) = find_tasks(str(tmp_path / "own.jsonl"), [], 0)
    assert task.notes == ("1 question with several right answers, which may also be offered as wrong ones",)
    assert set(task.query(0, 0, 1, 5, 0).candidates) == {" blue", " green", " two"}
    write_lines(tmp_path / "own.jsonl", lines[:2])
    (task,) = find_tasks(str(tmp_path / "own.jsonl"), [], 0)
    assert task.notes == ()


def test_blank_values_of_a_dataset_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "facts").mkdir()
    write_lines(tmp_path / "facts/test.jsonl", [{"text": "Snow is", "value": value} for value in (" ", "white")])
    (task,) = find_tasks(f"hub:{tmp_path / 'facts'}?kind=text-recall", [], 0)
    assert [item.output for item in task.evaluation] == ["white"]


def test_scrambles_of_a_folder_are_asked_where_they_are_named(
    save_model, text_file: str, pair_file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    shutil.copy(pair_file, folder / "letters.jsonl")
    mixed = [
        {"input": f"{word[::-1]}", "output": word, "split": split}
        for split, words in (("pool", ("drink", "water")), ("eval", ("bread", "salty")))
        for word in words
    ]
    write_lines(folder / "mixed.jsonl", mixed)
    model = save_model("one", 1)
    for suite, names in (("quick", ["letters"]), ("full", ["letters"]), ("paper", ["letters", "mixed"])):
        plan = make_plan(Request(models=[model], suite=suite, texts=[text_file], tasks=[str(folder)]))
        assert [task.name for task in plan.tasks] == names
        assert (f"not in {suite}-1 unless their files are named: mixed" in plan.notes) == (len(names) == 1)
    tasks = [str(folder), str(folder / "mixed.jsonl")]
    named = make_plan(Request(models=[model], texts=[text_file], tasks=tasks))
    assert [task.name for task in named.tasks] == ["letters", "mixed"]


def test_the_phonebook_is_asked_by_name_and_in_paper(save_model, text_file: str) -> None:
    model = save_model("one", 1)
    for suite in ("quick", "full", "paper"):
        tasks = [task.name for task in make_plan(Request(models=[model], suite=suite, texts=[text_file])).tasks]
        assert tasks[:3] == ["copying", "key_value_recall", "case_change"]
        assert ("phonebook" in tasks) == (suite == "paper")

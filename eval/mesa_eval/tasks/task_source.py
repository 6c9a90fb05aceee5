"""Tasks from files and Hub datasets: reads the columns and determines the kind of task.

A file has one object per line with `input`, `output` and `split` ("pool" or "eval"); `NAME.labels.json` beside it makes
it a classification. Lines with `text` but no `split` are passages, which ask for their `value` if there is one and
otherwise for their last word. `NAME.yaml` beside a file, a `.yaml` that names a dataset, and the options of
`hub:NAME?key=value&...` all take the same settings, `TaskSettings`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import yaml
from pydantic import Field

from mesa_eval.tasks.classification import ClassTask
from mesa_eval.tasks.dataset_rows import read_dataset
from mesa_eval.tasks.episodes import EpisodeTask
from mesa_eval.tasks.extractive import ChoiceTask, is_choice, listed_words
from mesa_eval.tasks.minimal_pairs import MinimalPairTask
from mesa_eval.tasks.passages import LastWordTask, TextRecallTask, cut_last_word
from mesa_eval.tasks.scrambles import ScrambleTask, is_scramble
from mesa_eval.tasks.task import Item, Task, check_template
from mesalm.data.documents import Faults
from mesalm.data.read_files import FileSource
from mesalm.data.source_settings import SourceSettings
from mesalm.files import expanded
from mesalm.settings import Settings, one_of
from mesalm.wording import plural

MOST_LABELS = 20  # with more, one demonstration per label fills the window of a small model
KINDS: dict[str, type[Task]] = {
    "pair": Task,
    "choice": ChoiceTask,
    "scramble": ScrambleTask,
    "class": ClassTask,
    "minimal": MinimalPairTask,
    "text-recall": TextRecallTask,
    "last-word": LastWordTask,
}
PASSAGES = ("text-recall", "last-word")
HUB = "hub:"


class TaskSettings(Settings):
    """The settings of a task from a file or a dataset."""

    dataset: str | None = Field(default=None, description="Name on the Hub or local folder; needed without a file.")
    subset: str | None = Field(default=None, description="The dataset's configuration.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the dataset.")
    name: str | None = Field(default=None, description="Name of the task in reports.")
    kind: Literal["pair", "choice", "scramble", "class", "minimal", "text-recall", "last-word"] | None = Field(
        default=None, description="Kind of task; inferred from the items if omitted."
    )
    input: str | None = Field(
        default=None,
        description="Column of the question (default input; minimal: of the right sentence; passages: text).",
    )
    output: str | None = Field(
        default=None,
        description="Column of the answer (default output; minimal: of the wrong sentence; text-recall: value).",
    )
    group: str = Field(default="paradigm", description="Column of a minimal pair's paradigm, if present.")
    pool: str = Field(default="train", description="Split of the dataset that demonstrations come from.")
    eval: str = Field(default="test", description="Split of the dataset that queries come from.")
    most: int = Field(default=5000, ge=1, description="Maximum number of rows read per split.")
    labels: list[str] | None = Field(default=None, description="The label set of a classification.")
    header: str | None = Field(default=None, description="Text at the start of every prompt.")
    template: str | None = Field(default=None, description="Format of one item: {input} and ' {output}'.")

    def _check(self) -> None:
        if self.template is not None:
            check_template(self.template)
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError("labels must be at least two different strings")

    def columns(self, kind: str | None) -> tuple[str, str]:
        """Return the columns of question and answer; for last-word tasks both default to the same column."""
        question = self.input or ("text" if kind in PASSAGES else "input")
        if kind == "last-word":
            return question, self.output or question
        return question, self.output or ("value" if kind == "text-recall" else "output")


def read_tasks(name: str, known: Sequence[str]) -> list[Task]:
    """Return the tasks of a file, all files of a folder, a `.yaml` or `hub:NAME?key=value`.

    `known` are the names of built-in tasks. Raises a one-line ValueError for unreadable or malformed sources.
    """
    if not name.strip():
        raise ValueError(f"an empty task name was given; choose from {', '.join(known)}, or name a file or hub:NAME")
    if name.startswith(HUB):
        dataset, _, options = name.removeprefix(HUB).partition("?")
        if not dataset:
            raise ValueError(f"task {name!r}: names no dataset; write hub:NAME")
        given = dict(parse_qsl(options, keep_blank_values=True))
        labels = {"labels": given.pop("labels").split(",")} if "labels" in given else {}
        settings = TaskSettings.build({"dataset": dataset, **given, **labels}, f"task {name!r}")
        return _from_dataset(settings, name)
    path = expanded(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
        if not files:
            raise ValueError(f"{path}: contains no .jsonl or .jsonl.gz file")
        return [task for file in files for task in _from_file(file)]
    if not path.is_file():
        one_of(name, known, "a built-in task, and there is no such file")
    if path.suffix in (".yaml", ".yml"):
        settings = _read_settings(path)
        if settings.dataset is None:
            raise ValueError(f"{path}: has no dataset; to describe a file, name the file and keep this beside it")
        return _from_dataset(settings, str(path))
    return _from_file(path)


def _from_file(path: Path) -> list[Task]:
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    beside = path.with_name(f"{stem}.yaml")
    settings = _read_settings(beside) if beside.is_file() else TaskSettings()
    labels_path = path.with_name(f"{stem}.labels.json")
    labels = settings.labels or (_read_labels(labels_path) if labels_path.is_file() else None)
    splits: dict[str, list[Item]] = {"pool": [], "eval": []}
    records = _read_records(path)
    settings = _found_from(records[0][1], settings)
    question, answer = settings.columns(settings.kind)
    passages = settings.kind in PASSAGES
    for where, record in records:
        for key in (question, answer) if passages else (question, answer, "split"):
            if not isinstance(record.get(key), str):
                raise ValueError(f"{where}: needs the text field {key!r}")
        if passages:
            splits["eval"].append(_passage(record[question], record[answer], question == answer, where))
        elif record["split"] in splits:
            item = Item(record[question], record[answer], str(record.get(settings.group, "")))
            splits[record["split"]].append(item)
        else:
            raise ValueError(f"{where}: split is {record['split']!r}; it must be 'pool' or 'eval'")
    labels = None if passages else labels
    return make_tasks(settings.name or stem, splits["pool"], splits["eval"], labels, settings, str(path))


def _read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the location and columns of each record; raise a one-line ValueError for a bad record or an empty file."""
    source = FileSource(SourceSettings.build({"name": "files", "files": [str(path)]}), every_column=True)
    records = [(record[0], record[2]) for record in source.records(path, Faults()) if record is not None]
    if not records:
        raise ValueError(f"{path}: has no lines")
    return records


def _from_dataset(settings: TaskSettings, where: str) -> list[Task]:
    assert settings.dataset is not None
    question, answer = settings.columns(settings.kind)
    columns = {"input": question, "output": answer, "group": settings.group}
    passages = settings.kind in PASSAGES
    splits: dict[str, list[Item]] = {"pool": [], "eval": []}
    labels = settings.labels
    for split, name in (("pool", settings.pool), ("eval", settings.eval)):
        if split == "pool" and (settings.kind == "minimal" or passages):
            continue
        rows, named = read_dataset(
            settings.dataset, settings.subset, settings.revision, name, columns, settings.most, where, passages
        )
        splits[split] = [
            _passage(row["input"], row["output"], question == answer, where)
            if passages
            else Item(row["input"], row["output"], row["group"])
            for row in rows
        ]
        labels = labels or named
    shown = {item.input for item in splits["pool"]}
    splits["eval"] = [item for item in splits["eval"] if item.input not in shown]
    name = settings.name or settings.dataset.rstrip("/").split("/")[-1]
    return make_tasks(name, splits["pool"], splits["eval"], labels, settings, where)


def make_tasks(
    name: str,
    pool: Sequence[Item],
    evaluation: Sequence[Item],
    labels: Sequence[str] | None,
    settings: TaskSettings,
    where: str,
) -> list[Task]:
    """Make one task from items; labels add N-way episodes, which replace the task if there are more than 20 labels.

    If the settings have no kind, labels give a classification, questions that list their answers a choice, words with
    scrambled letters a scramble, items with paradigms but no pool minimal pairs, and anything else pairs.
    Raises ValueError in one line for a split that is empty, a blank output or one with white space around it (prompts
    put a space before it), an input in both splits, an output that is no label, a label without a demonstration, or a
    choice whose answer the question does not list.
    """
    kind = settings.kind or _kind_of(pool, evaluation, labels)
    wording = {key: value for key in ("header", "template") if (value := getattr(settings, key)) is not None}
    without_pool = kind == "minimal" or kind in PASSAGES
    if without_pool:
        pool = ()
    for split, items in (("pool", pool), ("eval", evaluation)):
        if not items and (split == "eval" or not without_pool):
            raise ValueError(f"{where}: has no line of split {split!r}; a few-shot task needs both pool and eval")
    answers = [] if without_pool else [*pool, *evaluation]
    blank = [item for item in answers if not item.output.strip()]
    ends = [item.output for item in answers if item.output != item.output.strip() and not blank]
    if blank or ends:
        fault = f"{ends[0]!r} has white space at an end" if ends else f"that of {blank[0].input[:40]!r} is blank"
        raise ValueError(f"{where}: every output must be text without white space around it, but {fault}")
    both = {item.input for item in pool} & {item.input for item in evaluation}
    if both:
        raise ValueError(f"{where}: {min(both)!r} is in pool and in eval; an input may be in one of them only")
    unlisted = [item for item in evaluation if kind == "choice" and item.output not in listed_words(item)]
    if unlisted:
        raise ValueError(
            f"{where}: {unlisted[0].output!r} is not among the words that {unlisted[0].input[:40]!r} lists; a choice"
            " must list its answer"
        )
    own: dict[str, Any] = {"name": name, "pool": tuple(pool), "evaluation": tuple(evaluation), **wording}
    if kind == "pair" and (many := _with_several_answers(evaluation)):
        words = plural(many, "question")
        own["notes"] = (f"{words} with several right answers, which may also be offered as wrong ones",)
    if kind != "class":
        return [KINDS[kind](**own)]
    own["labels"] = _checked_labels(labels, pool, evaluation, where)
    tasks: list[Task] = []
    if len(own["labels"]) <= MOST_LABELS:
        tasks.append(ClassTask(**own))
    ways = EpisodeTask.ways
    if len(own["labels"]) > ways:
        tasks.append(EpisodeTask(**{**own, "name": f"{name}_{ways}way"}))
    return tasks


def _with_several_answers(items: Sequence[Item]) -> int:
    """Count the distinct questions that have more than one answer."""
    pairs = {(item.input, item.output) for item in items}
    return sum(count > 1 for count in Counter(question for question, _ in pairs).values())


def _found_from(first: dict[str, Any], settings: TaskSettings) -> TaskSettings:
    """Return the settings completed from the first line of a file: whether it is a passage, and its columns."""
    kind = settings.kind
    if kind is None and "split" not in first and "text" in first:
        kind = "text-recall" if settings.output or "value" in first or "output" in first else "last-word"
    question, answer = settings.input, settings.output
    if kind in PASSAGES and "text" not in first and "input" in first:
        question = question or "input"
    if kind == "text-recall" and "value" not in first and "output" in first:
        answer = answer or "output"
    return settings.model_copy(update={"kind": kind, "input": question, "output": answer})


def _passage(text: str, answer: str, whole: bool, where: str) -> Item:
    """Return a text and its value, or if `whole`, a text split before its last word, which is the answer.

    Raises a one-line ValueError for a blank value, which any continuation would contain.
    """
    if not whole and not answer.strip():
        raise ValueError(f"{where}: the text {text[:40]!r} has a blank value; give one or leave the text out")
    return cut_last_word(text, where) if whole else Item(text.rstrip(), answer.strip())


def _kind_of(pool: Sequence[Item], evaluation: Sequence[Item], labels: Sequence[str] | None) -> str:
    if labels is not None:
        return "class"
    if not pool and all(item.group for item in evaluation):
        return "minimal"
    items = [*pool, *evaluation]
    if items and is_choice(items):
        return "choice"
    return "scramble" if items and is_scramble(items) else "pair"


def _checked_labels(
    labels: Sequence[str] | None, pool: Sequence[Item], evaluation: Sequence[Item], where: str
) -> tuple[str, ...]:
    found = tuple(labels or sorted({item.output for item in [*pool, *evaluation]}))
    for item in [*pool, *evaluation]:
        if item.output not in found:
            raise ValueError(f"{where}: output {item.output!r} is not in the labels; name them all")
    missing = set(found) - {item.output for item in pool}
    if missing:
        raise ValueError(f"{where}: no line of the pool has the label {min(missing)!r}")
    if len(found) < 2:
        raise ValueError(f"{where}: a classification needs at least two labels")
    return found


def _read_labels(path: Path) -> list[str]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: the labels cannot be read ({error})") from error
    strings = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not strings or len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(f"{path}: must be a list of at least two different strings")
    return list(labels)


def _read_settings(path: Path) -> TaskSettings:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return TaskSettings.build(data or {}, str(path))

"""Few-shot tasks: items, prompts, demonstrations and distractors, none of which looks at a model.

Everything is chosen by the seed, the task's name and the text alone, so every model, whatever its tokenizer,
gets the same queries, demonstrations and candidates. The table `TASKS` names the modules of built-in tasks,
each with `build(documents, seed) -> Task`; any other name is read as a file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mesa_eval.documents import Document, stable_number

TASKS = {
    "copying": "mesa_eval.tasks.copying",
    "key_value_recall": "mesa_eval.tasks.key_value_recall",
    "case_change": "mesa_eval.tasks.case_change",
}


@dataclass(frozen=True)
class Item:
    """Hold one question and its answer."""

    input: str
    output: str


@dataclass(frozen=True)
class Query:
    """Hold one prompt: its text, the right continuation and every candidate (the right one among them)."""

    prompt: str
    answer: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Describe a task. `kind` is "pair" (ranked among other answers), "class" (among `labels`) or "recall"
    (one of the demonstrations holds the answer to the query)."""

    name: str
    kind: str
    pool: tuple[Item, ...]
    evaluation: tuple[Item, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def fingerprint(self) -> str:
        """Return the sha256 over kind, labels and items."""
        items = [[[item.input, item.output] for item in split] for split in (self.pool, self.evaluation)]
        return hashlib.sha256(json.dumps([self.kind, self.labels, items]).encode()).hexdigest()

    def queries(self, count: int, seed: int) -> list[int]:
        """Choose the indices of at most `count` evaluation items."""
        order = self._generator(seed, "queries").permutation(len(self.evaluation))
        return sorted(order[:count].tolist())

    def demonstrations(self, query: int, draw: int, shots: int, seed: int) -> list[Item]:
        """Return the demonstrations before a query, in the order in which they are shown.

        "pair": the first `shots` of a permutation of the pool that depends on the draw only, so that more shots
        extend fewer. "class": the same, but each round of as many shots as there are labels shows every label
        once, in a fresh order. "recall": the query's own item at a random place among `shots` - 1 others.
        """
        if self.kind == "recall":
            return self._recall_demonstrations(query, draw, shots, seed)
        generator = self._generator(seed, "demonstrations", draw)
        order = [self.pool[i] for i in generator.permutation(len(self.pool))]
        if self.kind == "pair":
            return order[:shots]
        queues = {label: [item for item in order if item.output == label] for label in self.labels}
        shown: list[Item] = []
        while len(shown) < shots and any(queues.values()):
            for label in generator.permutation(len(self.labels)):
                if queues[self.labels[label]]:
                    shown.append(queues[self.labels[label]].pop(0))
        return shown[:shots]

    def query(self, index: int, draw: int, shots: int, candidates: int, seed: int) -> Query:
        """Return the prompt of one evaluation item with its answer and candidates.

        Distractors of a "pair" task are other answers of the evaluation items, those nearest in length first
        (a sum of log-probabilities favours short answers), ties broken by the seed. A "recall" task takes
        other answers out of the prompt first.
        """
        item = self.evaluation[index]
        shown = self.demonstrations(index, draw, shots, seed)
        if self.kind == "class":
            choices = list(self.labels)
        else:
            seen = [demonstration.output for demonstration in shown] if self.kind == "recall" else []
            choices = self._answer_candidates(index, seen, candidates, seed)
        return Query(self.prompt(shown, item.input), f" {item.output}", tuple(f" {choice}" for choice in choices))

    def prompt(self, demonstrations: Sequence[Item], question: str) -> str:
        """Write demonstrations and question: `Q: x\\nA: y\\n\\n` blocks, or `text: x\\nlabel: y\\n\\n`."""
        ask, reply = ("text", "label") if self.kind == "class" else ("Q", "A")
        blocks = [f"{ask}: {item.input}\n{reply}: {item.output}\n\n" for item in demonstrations]
        return "".join(blocks) + f"{ask}: {question}\n{reply}:"

    def majority(self, queries: Sequence[int]) -> float | None:
        """Return the share of the commonest label among the queries; None where there are no labels."""
        if self.kind != "class":
            return None
        outputs = [self.evaluation[index].output for index in queries]
        return max(outputs.count(label) for label in self.labels) / len(outputs)

    def _recall_demonstrations(self, query: int, draw: int, shots: int, seed: int) -> list[Item]:
        if shots < 1:
            return []
        generator = self._generator(seed, "demonstrations", draw, query)
        others = [item for number, item in enumerate(self.evaluation) if number != query]
        place = generator.random()
        shown = [others[i] for i in generator.permutation(len(others))[: shots - 1]]
        shown.insert(int(place * shots), self.evaluation[query])
        return shown

    def _answer_candidates(self, index: int, seen: list[str], count: int, seed: int) -> list[str]:
        answer = self.evaluation[index].output
        generator = self._generator(seed, "candidates", index)
        preferred = [other for other in dict.fromkeys(seen) if other != answer]
        preferred = [preferred[i] for i in generator.permutation(len(preferred))]
        others = sorted({item.output for item in self.evaluation} - {answer} - set(preferred))
        others = [others[i] for i in generator.permutation(len(others))]
        others.sort(key=lambda other: abs(len(other.encode()) - len(answer.encode())))
        return [answer, *(preferred + others)[: count - 1]]

    def _generator(self, seed: int, *purpose: object) -> np.random.Generator:
        return np.random.default_rng([seed, stable_number(self.name, *purpose)])


def find_task(name: str, documents: Sequence[Document], seed: int) -> Task:
    """Return the task of a name in `TASKS` or of a `.jsonl` / `.jsonl.gz` file.

    Raises ValueError in one line for an unknown name, a file of the wrong form, or too little text to make the
    task from.
    """
    if name in TASKS:
        module = importlib.import_module(TASKS[name])
        task = module.build(documents, seed)
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(TASKS)
            raise ValueError(f"task {name!r}: neither a built-in task ({known}) nor a .jsonl file")
        module_name = "classification_file" if labels_path(path).is_file() else "pairs_file"
        task = importlib.import_module(f"mesa_eval.tasks.{module_name}").read(path)
    if not isinstance(task, Task):
        raise TypeError(f"task {name!r}: its module returned {type(task).__name__}, not a Task")
    return task


def labels_path(path: Path) -> Path:
    """Return where a classification file's label set lies: `NAME.labels.json` beside `NAME.jsonl[.gz]`."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ".labels.json")

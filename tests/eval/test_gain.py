"""What demonstrations are worth in bits, what of it lies in their pairing, and texts that are read twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.few_shot import TaskScores, score_task
from mesa_eval.measures.parts import measurements
from mesa_eval.measures.plan import EvaluationPlan, Request
from mesa_eval.measures.scores import ModelCard, Part, Scores
from mesa_eval.measures.suites import find_suite
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.measures.token_count import TokenCounter
from mesa_eval.reading.encoding import Pair
from mesa_eval.reading.reader import Likelihood
from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks.classification import ClassTask
from mesa_eval.tasks.extractive import ChoiceTask
from mesa_eval.tasks.key_value_recall import RecallTask
from mesa_eval.tasks.passages import TextRecallTask, repeat_text
from mesa_eval.tasks.task import FewShotSizes, Item, Task, shuffled

SIZES = FewShotSizes(shots=(0, 2, 8, 16), draws=1, queries=25, candidates=5, class_shots=(0, 4))
KEYS = [f"{a}{b}" for a in "bdfghj" for b in "aeiouklmn"]
ITEMS = tuple(Item(key, key[::-1]) for key in KEYS)
LABELS = ("no", "yes")
TASKS: list[Task] = [
    Task("pairs", ITEMS[:24], ITEMS[24:]),
    ChoiceTask(
        "choice", *(tuple(Item(f"{i.input}, {i.output}", i.output) for i in own) for own in (ITEMS[:24], ITEMS[24:]))
    ),
    ClassTask(
        "classes",
        tuple(Item(key, LABELS[n % 2]) for n, key in enumerate(KEYS[:24])),
        tuple(Item(key, LABELS[n % 2]) for n, key in enumerate(KEYS[24:])),
        labels=LABELS,
    ),
    RecallTask("recall", (), ITEMS),
]


class Oracle(TokenCounter):
    """Give a continuation `bits(demonstrations, question, continuation)`."""

    def __init__(self, tokenizer, bits: Callable[[list[list[str]], str, str], float]) -> None:
        super().__init__(tokenizer, "oracle", len(tokenizer), 8192, True)
        self.bits = bits

    def writes(self) -> bool:
        return False

    def likelihoods(self, pairs: Sequence[Pair], what: str = "", shared=None) -> list[Likelihood]:
        found = []
        for pair in pairs:
            *shown, asked = self.tokenizer.decode(pair.tokens[1 : pair.start]).split("\n\n")
            blocks = [[line.split(": ")[1] for line in block.split("\n")] for block in shown]
            text = self.tokenizer.decode(pair.tokens[pair.start :]).strip()
            bits = self.bits(blocks, asked.split(": ")[1].split("\n")[0], text)
            found.append(Likelihood(-bits * float(np.log(2)), False, tuple(pair.tokens[pair.start :])))
        return found


def blind(shown: list[list[str]], asked: str, text: str) -> float:
    return 7.0 + len(asked) + len(text)


def format_alone(shown: list[list[str]], asked: str, text: str) -> float:
    """Learn that answers are what demonstrations answer, and how they look, not which belongs to which question."""
    answers = [answer for _, answer in shown]
    return 20.0 if not shown else 6.0 - 2.0 * answers.count(text) / len(answers)


def look_up(shown: list[list[str]], asked: str, text: str) -> float:
    """Find the question among the demonstrations, or the demonstrations that are answered as they should be."""
    if not shown:
        return 20.0
    right = sum(answer in (question[::-1], question.split(", ")[-1]) for question, answer in shown) / len(shown)
    return 10.0 - 8.0 * max(right, float([asked, text] in shown))


def scored(tokenizer, bits, tasks: Sequence[Task] = TASKS, window: int = 4096) -> Scores:
    parts = []
    for task in tasks:
        scores = score_task(Oracle(tokenizer, bits), task, SIZES, window, seed=0)
        parts.append(Part(f"task/{task.name}", "", task_measures(scores), task=scores.record))
    card = ModelCard(bits.__name__, bits.__name__, "M", "", 1, "f", "t", 9, window, 0)
    return Scores(card, {"seed": 0, "name": "made"}, "text", 1, 1, window, parts, {})


def test_gain_and_pairing_of_models_that_are_known(tokenizer) -> None:
    learnable = [task for task in TASKS if task.name != "classes"]
    comparison = build_comparison([scored(tokenizer, bits, learnable) for bits in (blind, format_alone, look_up)])
    gain, pairing = comparison.row("demonstration_gain"), comparison.row("demonstration_gain/pairing")
    assert gain.label == "demonstration gain of 3 tasks"
    assert (gain.section, gain.unit, gain.better) == ("primary", "bits per answer", "higher")
    none, some, most = (value.value for value in gain.values)
    assert none == 0
    assert 14.0 <= some <= 16.0
    assert most == pytest.approx(18.0)
    assert [value.value for value in pairing.values[:2]] == pytest.approx([0, 0], abs=1e-9)
    assert pairing.values[2].value > 6
    assert comparison.verdict(pairing, 2) == "better"
    assert pairing.differences[1].interval.excludes_zero is False
    # each task weighs the same
    own = [comparison.row(f"task/{task.name}/gain") for task in learnable]
    assert np.mean([row.values[1].value for row in own]) == pytest.approx(some)
    assert {row.unit for row in own} == {"bits per answer"}


def test_a_model_that_learns_the_labels_gains_by_no_pairing(tokenizer) -> None:
    (part,) = scored(tokenizer, format_alone, [TASKS[2]]).parts
    measures = {measure.key: measure for measure in part.measures}
    assert np.mean(measures["task/classes/gain"].numerator) == pytest.approx(15.0)  # half of what is shown
    assert np.mean(measures["task/classes/gain-pairing"].numerator) == pytest.approx(0, abs=1e-9)


def test_a_task_that_was_asked_otherwise_is_left_out_of_the_gain(tokenizer) -> None:
    # at 200 tokens the pairs fit at 8 shots, at 100 at 2
    models = [scored(tokenizer, format_alone, TASKS[:1], window) for window in (200, 100)]
    comparison = build_comparison(models)
    assert comparison.row("demonstration_gain") is None
    assert "left out of the demonstration gain, because models were asked different items: pairs" in comparison.notes


@pytest.mark.parametrize("task", TASKS)
def test_shuffled_demonstrations_are_the_same_with_answers_elsewhere(task: Task) -> None:
    (other,) = [own for own in task.variants(8, SIZES, 0) if own.variant == "shuffled"]
    for index in range(10):
        plain, moved = (own.query(index, 0, 8, 5, seed=0) for own in (task, other))
        shown = [[line.split(": ")[1] for line in block.split("\n")] for block in plain.shared.strip().split("\n\n")]
        found = [[line.split(": ")[1] for line in block.split("\n")] for block in moved.shared.strip().split("\n\n")]
        assert [ask for ask, _ in shown] == [ask for ask, _ in found]
        assert sorted(answer for _, answer in shown) == sorted(answer for _, answer in found)
        assert plain.prompt.removeprefix(plain.shared) == moved.prompt.removeprefix(moved.shared)
        assert (plain.answer, plain.candidates) == (moved.answer, moved.candidates)
        if task.name != "classes":
            assert all(one != two for (_, one), (_, two) in zip(shown, found, strict=True))


def test_a_permutation_leaves_nothing_in_its_place_and_is_even() -> None:
    items = [Item(str(n), str(n)) for n in range(4)]
    seen: dict[str, int] = {}
    for seed in range(900):
        order = "".join(item.output for item in shuffled(items, np.random.default_rng(seed)))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 9  # derangements of four
    assert min(seen.values()) > 60
    assert shuffled(items[:1], np.random.default_rng(0)) == items[:1]


def test_controls_are_asked_at_the_primary_number_of_shots_only(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    pairs, _, classes, recall = (score_task(scorer, task, SIZES, 4096, seed=0) for task in TASKS)
    assert [level.shots for level in pairs.by_variant[""]] == [0, 2, 8, 16]
    for scores, names in (
        (pairs, {"shuffled"}),
        (classes, {"permuted", "symbols", "shuffled"}),
        (recall, {"shuffled", "twice"}),
    ):
        assert {name: [level.shots for level in own] for name, own in scores.by_variant.items() if name} == {
            name: [scores.primary] for name in names
        }
    assert (pairs.primary, classes.primary) == (8, 4)
    one = FewShotSizes(shots=(0, 1), draws=1, queries=5, candidates=3)
    assert set(score_task(scorer, TASKS[0], one, 4096, seed=0).by_variant) == {
        ""
    }  # one demonstration cannot be shuffled


def keys_of(scores: TaskScores) -> set[str]:
    return {measure.key.rsplit("/", 1)[1] for measure in task_measures(scores)}


def test_exact_match_is_asked_where_it_tells_something(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    pairs, choice, _, recall = (keys_of(score_task(scorer, task, SIZES, 4096, seed=0)) for task in TASKS)
    assert "exact" not in pairs | choice
    assert "exact" in recall


def test_texts_are_read_twice_to_the_letter(make, tokenizer) -> None:
    assert repeat_text("a: b\nc: d\na:") == "a: b\nc: d\na: b\nc: d\na:"
    assert repeat_text("The end of it is") == "The end of it is\nThe end of it is"
    task = TextRecallTask("facts", (), (Item("a: b\na:", "b"), Item(f"a: {'b' * 40}\na:", "bb")))
    (twice,) = task.variants(0, SIZES, 0)
    assert twice.query(0, 0, 0, 1, seed=0).prompt == "a: b\na: b\na:"
    recall = next(own for own in TASKS[3].variants(8, SIZES, 0) if own.variant == "twice")
    plain, repeated = (own.query(3, 0, 8, 5, seed=0) for own in (TASKS[3], recall))
    assert repeated.prompt == plain.shared + plain.prompt
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    # 60 tokens hold the first text twice and the second once
    scores = score_task(scorer, task, SIZES, 60, seed=0)
    assert scores.left_out == {"": 0, "twice": 1}
    measures = {measure.key: measure for measure in task_measures(scores)}
    assert measures["task/facts/0/answer-twice"].units == ["0"]
    assert measures["task/facts/0/answer-twice"].unit == "answer, bits per byte, read twice"
    assert measures["task/facts/0/answer"].units == ["0", "1"]
    plan = EvaluationPlan(Request(models=[]), find_suite("quick"), (), (), (), (), (task,), {}, ())
    (asked,) = [found for found in measurements(scorer, 60, plan, None) if found.name == "task/facts"]
    assert "facts, read twice: 1 of 2 left out: with their answers they exceed 60 tokens" in [
        note.text for note in asked.run().notes
    ]
    short = score_task(scorer, TASKS[3], SIZES, 150, seed=0)
    assert (short.primary, short.left_out["twice"], short.by_variant["twice"]) == (8, 25, [])

"""Every kind of task: its prompts to the letter, its candidates, and scores known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mesa_eval.measures.few_shot import ShotScores, TaskScores, digits_right, score_task
from mesa_eval.measures.scores import Measure, TaskRecord
from mesa_eval.measures.task_measures import task_measures
from mesa_eval.reading.documents import read_documents
from mesa_eval.reading.scoring import Scorer
from mesa_eval.tasks import find_tasks
from mesa_eval.tasks.classification import ClassTask
from mesa_eval.tasks.episodes import EpisodeTask
from mesa_eval.tasks.extractive import ChoiceTask, is_choice
from mesa_eval.tasks.minimal_pairs import MinimalPairTask
from mesa_eval.tasks.scrambles import ScrambleTask, is_scramble
from mesa_eval.tasks.task import FewShotSizes, Item

SIZES = FewShotSizes(
    shots=(0, 2),
    draws=2,
    queries=6,
    candidates=3,
    class_shots=(0, 1, 2),
    entries=(4,),
    episodes=12,
    episode_shots=(1, 2),
    group_pairs=2,
)
LABELS = ("red", "tan", "sky")
CLASSES = ClassTask(
    "colours",
    tuple(Item(f"pool {n}", LABELS[n % 3]) for n in range(12)),
    tuple(Item(f"eval {n}", LABELS[n % 3]) for n in range(9)),
    labels=LABELS,
)


def value(measure: Measure) -> float:
    """Return a measure's value: the mean over columns of the ratios of sums."""
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(np.sum(measure.numerator, 0) / np.sum(measure.denominator, 0)))


def test_labels_permuted_and_symbols_keep_demonstrations_and_queries() -> None:
    variants = {task.variant: task for task in [CLASSES, *CLASSES.variants(2, SIZES, seed=4)]}
    assert list(variants) == ["", "permuted", "symbols", "shuffled"]
    del variants["shuffled"]
    plain = CLASSES.query(1, 1, 2, 99, seed=4)
    for name, task in variants.items():
        query = task.query(1, 1, 2, 99, seed=4)
        assert len(query.candidates) == 3
        shown = [block.split("\nlabel: ") for block in query.shared.strip().split("\n\n")]
        table = {}
        for before, after in zip(plain.shared.strip().split("\n\n"), shown, strict=True):
            text, label = before.split("\nlabel: ")
            assert text == after[0]
            table[label] = after[1]
        assert table[plain.answer.strip()] == query.answer.strip()
        assert len(set(table.values())) == 3
        if name == "permuted":
            assert set(table.values()) == set(LABELS)
            assert all(old != new for old, new in table.items())
        if name == "symbols":
            assert table == {"red": "A", "tan": "B", "sky": "C"}


def test_calibration_asks_for_the_label_of_nothing() -> None:
    query = CLASSES.free_query(3, 0, 1, seed=0)
    assert query.prompt.endswith("text: N/A\nlabel:")
    assert query.candidates == (" red", " tan", " sky")
    assert query.shared == CLASSES.query(3, 0, 1, 9, seed=0).shared


def hand_scores(ranked: list, free: list, truth: list, task: ClassTask = CLASSES) -> list[Measure]:
    """Return the measures of one level with given log-probabilities."""
    count = len(ranked)
    asked = list(range(count))
    nulls = {"even": [1 / 3] * count, "always red": [float(own == [0]) for own in truth]}
    level = ShotScores(
        asked,
        "1",
        1,
        "1 shot",
        [[0.5]] * count,
        [[4]] * count,
        [[1.0]] * count,
        ranked,
        truth,
        [free] * count,
        [[0]] * count,
        nulls=nulls,
    )
    return task_measures(TaskScores(task, TaskRecord("colours", "class"), asked, {"": [level]}, primary=1))


def test_accuracy_calibration_and_f1_by_hand() -> None:
    ranked = [[[-1.0, -2.0, -3.0]], [[-1.0, -1.5, -9.0]], [[-1.0, -1.0, -9.0]], [[-3.0, -2.0, -1.0]]]
    truth = [[0], [1], [1], [0]]
    measures = {measure.key.rsplit("/", 1)[1]: measure for measure in hand_scores(ranked, [[-0.2, -1.2, -4.0]], truth)}
    # plain: right, wrong (0 for 1), half (tie of 0 and 1), wrong (2 for 0)
    assert value(measures["accuracy"]) == pytest.approx(1.5 / 4)
    # calibrated differences: (-.8 -.8 1), (-.8 -.3 -5), (-.8 .2 -5), (-2.8 -.8 3): 2, 1, 1, 2 are named
    assert value(measures["calibrated"]) == pytest.approx(2 / 4)
    # plain F1: label 0: TP 1, FP 1.5, FN 1; label 1: TP .5, FP 0, FN 1.5; label 2: TP 0, FP 1
    assert value(measures["f1"]) == pytest.approx((2 / 4.5 + 1 / 2.5 + 0) / 3)
    # calibrated: label 0 is never named, label 1 always rightly, label 2 twice wrongly
    assert value(measures["f1-calibrated"]) == pytest.approx((0 + 1 + 0) / 3)
    assert value(measures["answer"]) == pytest.approx(0.5 / math.log(2) / 4)
    assert measures["accuracy"].chance == measures["calibrated"].chance == pytest.approx(1 / 2)
    # guessing evenly: labels 0 and 1 are half of the queries each, label 2 none
    assert measures["f1"].chance == pytest.approx(2 * 0.5 / 3 / (0.5 + 1 / 3))
    assert [measure.primary for measure in measures.values()] == [name == "calibrated" for name in measures]


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="comes with the extra eval")
    generator = np.random.default_rng(2)
    ranked = generator.normal(size=(40, 1, 3))
    truth = generator.integers(0, 3, (40, 1))
    measures = {measure.key: measure for measure in hand_scores(ranked.tolist(), [[0.0] * 3], truth.tolist())}
    expected = metrics.f1_score(truth[:, 0], ranked[:, 0].argmax(-1), average="macro")
    assert value(measures["task/colours/1/f1"]) == pytest.approx(expected)


def test_only_listed_words_are_scored() -> None:
    items = [Item("owl, book, tin", "owl"), Item("pen, cat, pen", "cat")]
    assert is_choice(items)
    assert not is_choice([*items, Item("a, b", "c")])
    task = ChoiceTask("first", tuple(items), tuple(items))
    assert task.query(0, 0, 0, 99, seed=0).candidates == (" owl", " book", " tin")
    assert task.query(1, 0, 0, 99, seed=0).candidates == (" pen", " cat")


def test_scrambles_have_a_header_and_as_many_shots_as_fit(make, tokenizer) -> None:
    assert is_scramble([Item("d!r?i.n!k", "drink"), Item("knird", "drink")])
    assert not is_scramble([Item("drink", "drink")])
    assert not is_scramble([Item("drink", "Drink")])
    assert not is_scramble([Item("drink1", "drink")])
    items = tuple(Item(f"{a}{b}xy", f"xy{a}{b}") for a in "abcd" for b in "efgh")
    task = ScrambleTask("mixed", items[:10], items[10:])
    shown = [Item("knird", "drink")]
    assert task.prompt(shown, "tca")[0] == (
        "Please unscramble the letters into a word, and write that word:\nknird = drink\ntca ="
    )
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    sizes = FewShotSizes(shots=(0,), draws=2, queries=6, candidates=5, scramble_shots=(0, 1, 10), most_shots=9)
    header = len(task.header)
    # a shot is "afxy = xyaf\n", the question "afxy =", and of the answer's five bytes four are read, after one start
    scores = score_task(scorer, task, sizes, header + 3 * 12 + 6 + 4 + 1, seed=0)
    assert [(level.key, level.shots) for level in scores.by_variant[""]] == [("0", 0), ("1", 1), ("most", 3)]
    assert scores.record.cut == [10]
    assert {measure.key.rsplit("/", 1)[1] for measure in task_measures(scores)} == {"answer", "exact"}
    most = [measure for measure in task_measures(scores) if "/most/" in measure.key]
    assert not any(measure.any_tokenizer for measure in most)
    assert "most that fit" in most[0].label


def test_minimal_pairs_compare_whole_sentences_by_paradigm(make, tokenizer) -> None:
    a, b = tokenizer("ab").input_ids
    table = torch.zeros(258, 258)
    table[a, b] = 5.0  # "ab" is likelier than "ba"
    pairs = [
        Item("ab", "ba", "order"),
        Item("abab", "aabb", "order"),
        Item("ba", "ab", "wrong"),
        Item("a", "b", "tied"),
    ]
    task = MinimalPairTask("blimp", (), tuple(pairs))
    scores = score_task(Scorer(make.table(table), tokenizer, quiet=True), task, SIZES, 64, seed=0)
    measures = {measure.key.removeprefix("task/blimp/0/"): measure for measure in task_measures(scores)}
    assert value(measures["accuracy/order"]) == 1.0
    assert value(measures["accuracy/wrong"]) == 0.0
    assert measures["accuracy"].units == ["0", "1", "2", "3"]
    assert measures["accuracy"].chance == 0.5
    assert value(measures["accuracy/tied"]) == 0.5
    assert value(measures["accuracy"]) == (1 + 1 + 0 + 0.5) / 4


def test_episodes_draw_their_classes_and_letters_afresh(make, tokenizer) -> None:
    labels = tuple(f"class{n}" for n in range(8))
    pool = tuple(Item(f"text {label} {n}", label) for label in labels for n in range(4))
    asked = tuple(Item(f"query {label} {n}", label) for label in labels for n in range(3))
    task = EpisodeTask("many_5way", pool, asked, labels=labels)
    seen = set()
    for index in range(12):
        one, two = task.query(index, 0, 1, 9, seed=0), task.query(index, 0, 2, 9, seed=0)
        assert one.candidates == (" A", " B", " C", " D", " E")
        blocks = [block.split("\nlabel: ") for block in two.prompt.split("\n\n")[:-1]]
        assert len(blocks) == 10
        table = {text.split()[2]: letter for text, letter in blocks}
        assert sorted(table.values()) == list("ABCDE")
        assert one.prompt.split("\n\n")[:-1] == two.prompt.split("\n\n")[:5]
        question = two.prompt.split("\n\n")[-1].split()[2]
        assert two.answer == f" {table[question]}"
        seen.add((tuple(sorted(table)), two.answer))
    assert len(seen) > 8
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    measures = task_measures(score_task(scorer, task, SIZES, 512, seed=0))
    assert [value(measure) for measure in measures] == pytest.approx([0.2, 0.2])
    assert {measure.resampled for measure in measures} == {"episode"}


def test_a_phonebook_holds_its_answer_once(text_file: str) -> None:
    (task,) = find_tasks("phonebook", read_documents([text_file]), 0)
    query = task.query(3, 0, 8, 5, seed=0)
    book, ask = query.prompt.split("\n\n")
    lines = book.split("\n")
    assert len(set(lines)) == 8
    *solved, question = ask.split("\n")
    assert len(solved) == 2
    assert set(solved) < set(lines)
    assert f"{question}{query.answer}" in set(lines) - set(solved)
    assert len(query.answer) == 8
    assert query.answer[1:].isdigit()
    assert task.query(3, 0, 8, 5, seed=0) == query != task.query(4, 0, 8, 5, seed=0)


def test_digits_are_compared_place_by_place(make) -> None:
    tokenizer = make.tokenizer(merges_from="12 345 " * 40, size=264)
    scorer = Scorer(make.table(torch.zeros(len(tokenizer), len(tokenizer))), tokenizer, quiet=True)
    true = scorer.encode(" 12345")
    assert len(true) < 6
    assert digits_right(scorer, true, tuple(true)) == 5
    single = scorer.encode(" 1745")
    other = scorer.encode(" 1245")
    if len(single) == len(other):
        assert digits_right(scorer, single, tuple(other)) == 3
    assert digits_right(scorer, [*scorer.encode(" "), *scorer.encode("7")], tuple([*scorer.encode("7")] * 2)) == 1

"""Scores on synthetic tasks: oracles score 1, models that know nothing score chance, n-grams are counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mesa_eval.synthetic.ngrams import ngram_distributions
from mesa_eval.synthetic.row_scores import SyntheticScores
from mesa_eval.synthetic.scores import answers_shown, score_guesses, score_logits, score_model
from mesalm.data.synthetic.tasks import TASKS
from mesalm.data.synthetic.token_task import TokenRows, TokenTask, collate_rows

SMALL: dict[str, dict[str, Any]] = {"mqar": {"vocabulary": 64, "length": 48, "pairs": 8}, "automata": {"length": 128}}


class Fixed(torch.nn.Module):
    """Give logits by looking rows up, as a model that sees everything would."""

    def __init__(self, task: TokenTask, right: bool) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.task, self.right = task, right

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        rows = TokenRows(self.task, "test", 5, 40)
        known = {tuple(rows[index]["input_ids"].tolist()): rows[index]["labels"] for index in range(40)}
        labels = torch.stack([torch.as_tensor(known[tuple(row.tolist())]) for row in input_ids]).long()
        logits = torch.nn.functional.one_hot(labels.clamp(min=0), self.task.vocab_size).float()
        if not self.right:
            logits = torch.zeros_like(logits).index_fill(-1, torch.tensor([3]), 1.0)
        if not self.task.reads_last_state:
            logits = torch.cat((logits[:, 1:], logits[:, :1]), dim=1)  # position t - 1 tells the label of t
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if issubclass(task, TokenTask) and task().guesses()]
)
def test_an_oracle_scores_one_and_a_constant_guess_about_chance(name: str) -> None:
    task: Any = TASKS[name].build(SMALL.get(name, {}))
    scores = score_model(Fixed(task, right=True), task, "test", 40, seed=5, batch_rows=16)
    assert scores.value == 1.0
    labels = collate_rows([TokenRows(task, "test", 5, 40)[index] for index in range(40)])["labels"]
    if not task.reads_last_state:
        labels = labels[:, 1:]
    constant = score_model(Fixed(task, right=False), task, "test", 40, seed=5, batch_rows=16)
    assert constant.value == pytest.approx(float((labels == 3).sum() / (labels != -100).sum()))
    again = SyntheticScores.from_plain(constant.plain())
    assert (again.value, again.better) == (constant.value, "higher")


@pytest.mark.parametrize(
    ("tokens", "labels", "last", "wanted"),
    [
        # keys 0 and 1: one of two values; both are as common, then 2 is, then both are again
        ([0, 2, 1, 3, 0, 2, 1, 3, 0, 2], {5: 2, 7: 3, 9: 2}, False, [1 / 2, (1 / 2 + 0 + 1 / 2) / 3]),
        # answers of several tokens: 3 is commoner, but 2 begins one as often, and nothing else than 3 follows 2
        ([0, 2, 3, 1, 3, 0, 2, 3], {6: 2, 7: 3}, False, [1 / 2, (0 + 1 / 2) / 2, (1 / 2 + 1) / 2]),
        ([2, 3, 2, 1], {0: 2, 1: 3, 2: 2}, True, [1 / 2, 2 / 3]),  # the whole row is read
        ([0, 1, 0, 1], {1: 4}, False, [0, 1 / 3]),  # nothing is shown
    ],
)
def test_answers_that_are_shown_can_be_guessed_without_the_question(
    tokens: list[int], labels: dict[int, int], last: bool, wanted: list[float]
) -> None:
    task: Any = SimpleNamespace(answers=range(2, 5), vocab_size=5, reads_last_state=last)
    row = {"input_ids": np.array(tokens), "labels": np.array([labels.get(at, -100) for at in range(len(tokens))])}
    rows: Any = [row, row]
    assert [scores.value for scores in answers_shown(task, rows).values()] == pytest.approx(wanted)


def test_a_model_that_names_the_symbol_drawn_is_legal_but_not_the_distribution() -> None:
    task: Any = TASKS["automata"].build(SMALL["automata"])
    scores = score_model(Fixed(task, right=True), task, "test", 40, seed=5, batch_rows=16)
    legal, distance = scores.measures
    assert legal.value == 1.0  # what was drawn is always legal
    assert 0.2 < distance.value < 0.9


def test_the_true_distribution_has_no_distance() -> None:
    task: Any = TASKS["automata"].build(SMALL["automata"])
    rows = TokenRows(task, "test", 5, 10)
    truth = [task.next_symbols(task.automaton(rows.random(row), "test"), rows[row]["input_ids"]) for row in range(10)]
    legal, distance = score_logits(task, rows, (np.log(np.maximum(one, 1e-300)) for one in truth)).measures
    assert legal.value == 1.0
    assert distance.value == pytest.approx(0.0, abs=1e-12)


def test_longer_contexts_guess_better_and_uniform_is_what_its_share_says() -> None:
    task: Any = TASKS["automata"].build({"length": 400})
    guesses = score_guesses(task, 40, seed=0)
    legal, distance = (
        [guesses[name].measures[measure].value for name in ("uniform", "unigram", "bigram", "trigram")]
        for measure in (0, 1)
    )
    assert legal[0] < legal[1] < legal[2] < legal[3]
    assert distance[0] > distance[1] > distance[2] > distance[3]
    rows = TokenRows(task, "test", 0, 40)
    edges = [
        1 - len(np.flatnonzero(chances)) / 18
        for index in range(40)
        for chances in task.next_symbols(task.automaton(rows.random(index), "test"), rows[index]["input_ids"])[1:]
        if chances.sum() > 0
    ]
    assert distance[0] == pytest.approx(np.mean(edges))  # uniform over 18 against uniform over the legal ones


def test_ngrams_by_hand() -> None:
    a, b, end = 0, 1, 2
    chances = ngram_distributions(np.array([a, b, a, end, a, a]), 2, 2)
    assert chances.tolist() == [
        [0.5, 0.5],  # nothing was seen
        [1.0, 0.0],  # after a: unseen as a context, so what was seen at all: a
        [0.5, 0.5],  # after b: unseen; a and b were seen once each
        [0.0, 1.0],  # after a came b
        [1.0, 0.0],  # a string began with a
        [0.0, 1.0],  # after a came b, once; the end of a string is no symbol
    ]
    trigram = ngram_distributions(np.array([a, b, a, a, b]), 2, 3)
    assert trigram[3].tolist() == [0.0, 1.0]  # "b a" unseen, so back to "a", after which came b
    assert trigram[4].tolist() == [0.5, 0.5]  # "a a" unseen; after a came b and a
    assert (ngram_distributions(np.array([a, b, a]), 2, 0) == 0.5).all()

"""Random automata: minimal, disjoint between splits, with distributions that are true."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mesalm.data.synthetic import automata
from mesalm.data.synthetic.automata import Automata, Automaton, Edges, minimal_automaton
from mesalm.data.synthetic.token_task import Split, TokenRows
from mesalm.settings import SettingsError

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
TASK = Automata(length=256)


def accepts(edges: Edges, word: tuple[int, ...]) -> bool:
    state = 0
    for symbol in word:
        step = dict(edges[state])
        if symbol not in step:
            return False
        state = step[symbol]
    return True


def languages(split: Split, count: int) -> list[Automaton]:
    rows = TokenRows(TASK, split, 0, count)
    return [TASK.automaton(rows.random(index), split) for index in range(count)]


def test_minimising_keeps_the_language_and_leaves_one_state_for_each_continuation() -> None:
    random = np.random.RandomState(0)
    words = [word for length in range(6) for word in product(range(2), repeat=length)]
    shrunk = 0
    for _ in range(150):
        states = random.randint(1, 6)
        edges = tuple(
            tuple((symbol, random.randint(states)) for symbol in range(2) if random.random_sample() < 0.8)
            for _ in range(states)
        )
        minimal = minimal_automaton(edges)
        assert [accepts(edges, word) for word in words] == [accepts(minimal.edges, word) for word in words]
        # Myhill and Nerode: as many states as there are sets of continuations; five symbols tell five states apart
        continuations = {
            tuple(accepts(edges, (*word, *more)) for more in words) for word in words if accepts(edges, word)
        }
        assert len(minimal.edges) == len(continuations)
        shrunk += 1 < len(minimal.edges) < states
    assert shrunk > 10  # cases in which states of their own kind were merged


def test_no_two_states_of_a_minimal_automaton_accept_the_same_and_all_are_reached() -> None:
    for language in languages("train", 30):
        states = len(language.edges)
        assert 4 <= states <= 12
        # two states differ where some word of at most `states` symbols is accepted from one alone (Moore)
        different = {(a, b) for a in range(states) for b in range(a) if language.legal(a) != language.legal(b)}
        for _ in range(states):
            for a in range(states):
                for b in range(a):
                    steps = [
                        (language.after(a, s), language.after(b, s))
                        for s in set(language.legal(a)) & set(language.legal(b))
                    ]
                    if any((max(pair), min(pair)) in different for pair in steps):
                        different.add((a, b))
        assert len(different) == states * (states - 1) // 2
        reached = {0}
        for _ in range(states):
            reached |= {to for state in reached for _, to in language.edges[state]}
        assert reached == set(range(states))
        assert all(1 <= len(edges) <= 4 for edges in language.edges)


def test_equal_languages_are_equal_automata_however_their_states_are_numbered() -> None:
    edges: Edges = (((0, 1), (1, 2)), ((0, 0),), ((1, 0), (2, 1)))
    swapped: Edges = (((0, 2), (1, 1)), ((1, 0), (2, 2)), ((0, 0),))
    doubled: Edges = (((0, 1), (1, 2)), ((0, 3),), ((1, 0), (2, 1)), ((0, 1), (1, 2)))
    assert minimal_automaton(edges) == minimal_automaton(swapped) == minimal_automaton(doubled)
    assert minimal_automaton(edges) != minimal_automaton((((0, 1), (1, 2)), ((0, 1),), ((1, 0), (2, 1))))


def test_no_language_of_one_split_is_in_another() -> None:
    # so few languages that every split meets most of its own many times
    tiny = Automata(vocabulary=6, states=2, states_min=1, edges=2, alphabet_min=2)
    rows = {split: TokenRows(tiny, split, 0, 300) for split in SPLITS}
    found = {split: [tiny.automaton(rows[split].random(index), split) for index in range(300)] for split in SPLITS}
    distinct = {split: set(languages) for split, languages in found.items()}
    assert len(distinct["train"]) + len(distinct["test"]) < 400
    assert not distinct["train"] & distinct["test"]
    assert not distinct["train"] & distinct["valid"]
    assert not distinct["valid"] & distinct["test"]


def test_rows_of_the_real_size_have_languages_of_their_own() -> None:
    assert len(set(languages("train", 100))) > 95


def test_a_row_is_strings_of_its_language() -> None:
    rows = TokenRows(TASK, "test", 0, 20)
    for index in range(20):
        language = TASK.automaton(rows.random(index), "test")
        tokens, labels = rows[index]["input_ids"], rows[index]["labels"]
        used = tokens[tokens != 19]
        assert np.array_equal(labels[: len(used)], used)
        assert (labels[len(used) :] == -100).all()
        strings = "".join(chr(65 + token) for token in used).split(chr(65 + 18))
        assert all(accepts(language.edges, tuple(ord(symbol) - 65 for symbol in string)) for string in strings)
        assert all(len(string) <= 50 for string in strings)


def test_true_distributions_match_the_frequencies_of_many_strings() -> None:
    task = Automata(length=4096, strings_min=150, strings=150)
    rows = TokenRows(task, "train", 0, 1)
    language = task.automaton(rows.random(0), "train")
    tokens = rows[0]["input_ids"]
    chances = task.next_symbols(language, tokens)
    symbols = tokens < 18
    assert np.allclose(chances[symbols].sum(1), 1)
    assert (chances[~symbols] == 0).all()
    drawn = np.eye(18)[tokens[symbols]]
    assert (chances[symbols][drawn == 1] > 0).all()
    # what was drawn, summed over places, against its expectation: within five standard deviations for each symbol
    spread = (chances[symbols] * (1 - chances[symbols])).sum(0) ** 0.5
    assert (np.abs(drawn.sum(0) - chances[symbols].sum(0)) <= 5 * spread).all()


def test_settings_without_a_language_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "MOST_DRAWS", 500)
    few = Automata(vocabulary=6, states_min=1, states=1, edges=1, alphabet_min=1)  # four languages, none in test
    with pytest.raises(SettingsError, match="none of 500 languages has 1 state and belongs to test"):
        TokenRows(few, "test", 0, 1)[0]


def test_an_illegal_symbol_is_an_error() -> None:
    language = Automaton((((0, 0),),))
    with pytest.raises(KeyError):
        language.after(0, 1)

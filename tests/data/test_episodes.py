from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from mesalm.data.documents import Faults
from mesalm.data.episode_words import ATTRIBUTES, LABELS, WORDS
from mesalm.data.episodes import (
    HELD_OUT,
    HELD_OUT_LABELS,
    TRAINING,
    EpisodeSettings,
    Recall,
    Rule,
    draw_examples,
    draw_mapping,
)
from mesalm.data.read_episodes import EpisodeSource
from mesalm.data.source_settings import SourceSettings
from mesalm.settings import SettingsError

SIGN = {word: sign for pair in ATTRIBUTES for word, sign in zip(pair, (-1, 1), strict=True)}


def texts(**settings: object) -> list[str]:
    source = EpisodeSource(SourceSettings.build({"name": "episodes", "episodes": settings}))
    return [document.text or "" for document in source.documents(Faults())]


def lines(text: str) -> list[tuple[str, str]]:
    assert text.endswith("\n")
    return [tuple(line.split(" = ")) for line in text.splitlines()]


def test_the_pools_are_apart() -> None:
    assert not set(TRAINING.words) & set(HELD_OUT.words)
    assert not set(TRAINING.labels) & set(HELD_OUT_LABELS.labels)
    assert len(set(WORDS)) == len(WORDS)
    assert not set(WORDS) & (set(LABELS) | set(SIGN))


def test_a_recall_episode_gives_each_word_one_label_of_its_own_choice() -> None:
    seen = defaultdict(set)
    for text in texts(count=200):
        mapping = {}
        for word, label in lines(text):
            assert mapping.setdefault(word, label) == label
            assert word in TRAINING.words
            seen[word].add(label)
        assert len(lines(text)) == 36
        assert len(mapping) <= 10
        assert len(set(mapping.values())) <= 4
    # what is learnt in one episode is of no use in the next
    assert np.mean([len(labels) for labels in seen.values()]) > 3


@pytest.mark.parametrize("task", ["recall", "rule"])
def test_labels_may_be_any_words_but_those_that_are_labelled(task: str) -> None:
    found = set()
    for text in texts(count=300, task=task, label_pool="words"):
        shown = lines(text)
        labels = {label for _, label in shown}
        assert not labels & {item.split()[-1] for item, _ in shown}
        assert labels <= set(TRAINING.words)
        assert len(labels) <= (4 if task == "recall" else 2)
        found |= labels
    assert len(found) > 250


def test_the_labels_of_a_rule_episode_follow_from_its_attributes() -> None:
    for text in texts(count=100, task="rule", attributes=4, lines=16):
        shown = [([SIGN[word] for word in item.split()[:-1]], label) for item, label in lines(text)]
        assert len({tuple(signs) for signs, _ in shown}) == 16  # no combination twice
        columns = np.array([signs for signs, _ in shown]).T
        first = np.array([1 if label == shown[0][1] else -1 for _, label in shown])
        assert (
            sum(abs(int(column @ first)) == 16 for column in columns) == 1
        )  # one attribute decides, all else does not


def test_a_linear_rule_is_the_sign_of_a_weighting() -> None:
    random = np.random.RandomState(3)
    settings = EpisodeSettings(task="rule", rule="linear", attributes=5)
    for _ in range(50):
        rule = draw_mapping(settings, HELD_OUT, random)
        assert isinstance(rule, Rule)
        examples = draw_examples(rule, 40, random)  # more than there are combinations: they begin again
        assert len({example.item.rsplit(" ", 1)[0] for example in examples}) == 32
        for example in examples:
            *attributes, word = example.item.split()
            score = sum(SIGN[name] * weight for name, weight in zip(attributes, rule.weights, strict=True))
            assert example.label == rule.labels[int(score > 0)]
            assert word in HELD_OUT.words
        share = np.mean([rule.label(number) == rule.labels[0] for number in range(32)])
        assert 0.3 <= share <= 0.7


def test_noise_shows_other_labels_of_the_episode() -> None:
    random = np.random.RandomState(0)
    mapping = draw_mapping(EpisodeSettings(), TRAINING, random)
    assert isinstance(mapping, Recall)
    examples = draw_examples(mapping, 4000, random, noise=0.2)
    wrong = [example for example in examples if example.shown != example.label]
    assert len(wrong) / len(examples) == pytest.approx(0.2, abs=0.02)  # 3 standard deviations
    assert all(example.shown in mapping.labels for example in wrong)
    assert {example.label for example in examples} == {mapping.label_of[example.item] for example in examples}


def test_an_episode_depends_on_seed_and_number_alone() -> None:
    assert texts(count=3) == texts(count=5)[:3]
    assert texts(count=3) != texts(count=3, seed=1)
    assert len(set(texts(count=50))) == 50
    words = [frozenset(word for word, _ in lines(text)) for text in texts(count=40, mappings=4, lines=200)]
    assert len(set(words)) == 4


def test_impossible_episodes_are_refused() -> None:
    with pytest.raises(SettingsError, match="labels: 4 is more than the number of words, 3"):
        EpisodeSettings.build({"words": 3})

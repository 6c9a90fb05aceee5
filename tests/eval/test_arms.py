"""Which runs are one arm, and which models of two arms are paired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mesa_eval.comparison.arms import Arm, find_arms, pairs, read_groups
from mesa_eval.evaluate import named_models
from mesa_eval.measures.scores import ModelCard
from mesa_eval.reading.model_source import find_model


def card(name: str, recipe: str = "", seed: int | None = None) -> ModelCard:
    return ModelCard(name, f"runs/{name}", "", "", 0, "", "", 0, 0, None, recipe=recipe, seed=seed)


def test_runs_of_one_recipe_are_one_arm() -> None:
    cards = [
        card("m-s1", "M", 1),
        card("x"),
        card("s-s0", "S", 0),
        card("m-s0", "M", 0),
        card("s-s1", "S", 1),
        card("y"),
    ]
    assert find_arms(cards) == [
        Arm("m", (3, 0), (0, 1)),
        Arm("x", (1,), (None,)),
        Arm("s", (2, 4), (0, 1)),
        Arm("y", (5,), (None,)),
    ]


def test_the_same_seed_twice_is_another_arm() -> None:
    arms = find_arms([card("a-s0", "M", 0), card("b-s0", "M", 0), card("a-s1", "M", 1)])
    assert [(arm.members, arm.seeds) for arm in arms] == [((0, 2), (0, 1)), ((1,), (0,))]
    assert [arm.name for arm in arms] == ["a", "b-s0"]


def test_arms_by_hand() -> None:
    cards = [card("p"), card("q"), card("r", "R", 5), card("t", "T", 6)]
    groups = read_groups(["one=runs/p,q", "two=r", "two=t"])
    assert find_arms(cards, groups) == [Arm("one", (0, 1), (0, 1)), Arm("two", (2, 3), (5, 6))]
    assert named_models(["r"], ["one=runs/p,runs/p", "two=r,runs/p"]) == ["r", "runs/p"]  # not opened twice
    with pytest.raises(ValueError, match="'z' is not one of p, q"):
        find_arms(cards, {"one": ["z"]})
    with pytest.raises(ValueError, match="p is in arm one already"):
        find_arms(cards, {"one": ["p"], "two": ["p"]})
    for text in ("one", "=a", "one=", "one= , "):
        with pytest.raises(ValueError, match="NAME=MODEL"):
            read_groups([text])


def test_arms_are_paired_by_seed() -> None:
    three, other = Arm("a", (0, 1, 2), (0, 1, 2)), Arm("b", (3, 4), (1, 5))
    assert pairs(three, other) == [(1, 1, 3)]
    assert pairs(three, Arm("c", (7,), (None,))) == [(0, 0, 7), (1, 1, 7), (2, 2, 7)]
    assert pairs(Arm("c", (7,), (None,)), other) == [(1, 7, 3), (5, 7, 4)]
    assert pairs(three, Arm("d", (8,), (9,))) == []
    assert pairs(Arm("d", (8,), (9,)), Arm("e", (1,), (2,))) == [
        (9, 8, 1)
    ]  # single runs are compared whatever their seeds


def test_recipes_tell_what_is_a_seed(tmp_path: Path) -> None:
    plain = {"name": "r-s0", "seed": 0, "output_dir": "runs", "optim": {"learning_rate": 0.1}}
    changes = [{}, {"name": "r-s1", "seed": 1, "output_dir": "b"}, {"optim": {"learning_rate": 0.2}}, {}]
    found = []
    for number, change in enumerate(changes):
        run = tmp_path / str(number)
        (run / "final").mkdir(parents=True)
        (run / "final" / "config.json").write_text("{}")
        (run / "recipe.yaml").write_text(yaml.safe_dump({**plain, **change}))
        start = {"event": "start", "step": 0, "data": "other" if number == 3 else "same"}
        (run / "journal.jsonl").write_text(json.dumps(start) + "\n")
        found.append(find_model(str(run)))
    assert [source.seed for source in found] == [0, 1, 0, 0]
    assert found[0].recipe == found[1].recipe != ""
    assert len({source.recipe for source in found}) == 3

"""Arms of a comparison: runs of one recipe that differ only in their training seed, and how they are paired."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesa_eval.measures.scores import ModelCard
from mesa_eval.reading.model_source import ModelSource

NO_COMMON_SEED = "no training seed in common"


Named = ModelSource | ModelCard
"""A model before it is opened, or the card in its scores: name, argument, seed and recipe decide its arm."""


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: its name, the indices of its models, and the training seed of each.

    A seed is None for a model without a known run, such as one from the Hub.
    """

    name: str
    members: tuple[int, ...]
    seeds: tuple[int | None, ...]

    @property
    def fixed(self) -> bool:
        """Return whether this is a single model without a known seed: a fixed reference, not a sample of seeds."""
        return self.seeds == (None,)


def find_arms(cards: Sequence[Named], groups: Mapping[str, Sequence[str]] | None = None) -> list[Arm]:
    """Group models into arms, ordered by their first models.

    Runs with equal recipes and data, except for name, seed and output folder, form one arm. `groups` defines arms
    explicitly: name -> arguments or names of models. If their seeds are unknown or not distinct, the order counts as
    seed. Raises ValueError for a group without models, or with a model of another group.
    """
    chosen = _by_hand(cards, groups or {})
    gathered: dict[object, list[int]] = {}
    for place in range(len(cards)):
        gathered.setdefault(chosen.get(place) or _recipe(cards, place, gathered), []).append(place)
    arms: list[Arm] = []
    for key, members in gathered.items():
        seeds: list[int | None] = [cards[place].seed for place in members]
        if len(members) > 1 and (None in seeds or len(set(seeds)) < len(seeds)):
            seeds = list(range(len(members)))
        order = sorted(range(len(members)), key=lambda place: seeds[place] or 0)
        members, seeds = [members[place] for place in order], [seeds[place] for place in order]
        name = key if isinstance(key, str) else _shared_name([cards[place] for place in members])
        while name in [arm.name for arm in arms]:
            name += "-2"
        arms.append(Arm(name, tuple(members), tuple(seeds)))
    return arms


def find_baseline(arms: Sequence[Arm], models: Sequence[Named], baseline: str | None) -> int:
    """Return the index of the baseline among the arms; ValueError if no arm or model has that name or argument."""
    if baseline in (None, "first", "last"):
        return 0 if baseline == "first" else len(arms) - 1
    titles = [arm.name for arm in arms]
    if baseline in titles:
        return titles.index(baseline)
    for known in ([model.name for model in models], [model.argument for model in models]):
        if baseline in known:
            place = known.index(baseline)
            return next(index for index, arm in enumerate(arms) if place in arm.members)
    raise ValueError(f"baseline {baseline!r}: must be 'first', 'last' or one of {', '.join(titles)}")


def read_groups(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read `NAME=MODEL,MODEL,...` of the command line; ValueError in one line for anything else."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, sign, models = text.partition("=")
        listed = [model.strip() for model in models.split(",") if model.strip()]
        if not sign or not name.strip() or not listed:
            raise ValueError(f"arm {text!r}: must be NAME=MODEL,MODEL,...")
        groups.setdefault(name.strip(), []).extend(listed)
    return groups


def pairs(own: Arm, base: Arm) -> list[tuple[int | None, int, int]]:
    """Return (seed, own model, base model) of every pair: by seed, or each with the one model of a fixed arm."""
    if own.fixed or base.fixed:
        seeds = base.seeds if own.fixed else own.seeds
        return [
            (seed, own.members[0 if own.fixed else place], base.members[0 if base.fixed else place])
            for place, seed in enumerate(seeds)
        ]
    partner = dict(zip(base.seeds, base.members, strict=True))
    if len(own.members) == len(base.members) == 1:
        return [(own.seeds[0], own.members[0], base.members[0])]
    return [(seed, place, partner[seed]) for seed, place in zip(own.seeds, own.members, strict=True) if seed in partner]


def _by_hand(cards: Sequence[Named], groups: Mapping[str, Sequence[str]]) -> dict[int, str]:
    chosen: dict[int, str] = {}
    for name, models in groups.items():
        for model in models:
            places = [place for place, card in enumerate(cards) if model in (card.argument, card.name)]
            if not places:
                raise ValueError(f"arm {name}: {model!r} is not one of {', '.join(card.name for card in cards)}")
            if chosen.setdefault(places[0], name) != name:
                raise ValueError(f"arm {name}: {model} is in arm {chosen[places[0]]} already")
    return chosen


def _recipe(cards: Sequence[Named], place: int, gathered: Mapping[object, Sequence[int]]) -> object:
    """Return the key by which a model is grouped; a repeated seed of the same recipe starts another arm."""
    card = cards[place]
    if not card.recipe or card.seed is None:
        return (place,)
    count = 0
    while any(cards[other].seed == card.seed for other in gathered.get((card.recipe, count), ())):
        count += 1
    return (card.recipe, count)


def _shared_name(cards: Sequence[Named]) -> str:
    """Return the name of a single model, or the common part of several names before their seeds."""
    names = [card.name for card in cards]
    if len(names) == 1:
        return names[0]
    stems = {re.sub(rf"-s{card.seed}$", "", card.name) for card in cards}
    return stems.pop() if len(stems) == 1 else names[0]

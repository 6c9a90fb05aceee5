"""Random regular languages, one per row (Akyurek et al. 2024, In-context language learning, arXiv 2401.12973)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from mesalm.settings import SettingsError
from mesalm.wording import plural

from .token_task import Row, Split, TokenTask, scored_labels

Edges = tuple[tuple[tuple[int, int], ...], ...]
"""The edges (symbol, next state) of each state in ascending order of symbols; state 0 is the start."""

SHARES: dict[str, tuple[int, int]] = {"train": (0, 80), "valid": (80, 90), "test": (90, 100)}
"""The values of `Automaton.share`, from the first to below the second, that belong to each split."""

MOST_DRAWS = 100_000
"""Maximum number of draws in search of a language of a split; the default settings need about ten."""


@dataclass(frozen=True)
class Automaton:
    """The minimal automaton of a prefix-closed language: every state accepts.

    States are numbered in the order of a breadth-first search by ascending symbols, so two automata are equal exactly
    if their languages are.
    """

    edges: Edges

    def after(self, state: int, symbol: int) -> int:
        """Return the next state. Raises KeyError for a symbol that is not legal in this state."""
        return dict(self.edges[state])[symbol]

    def legal(self, state: int) -> list[int]:
        """Return the symbols that may come next, all of them equally likely."""
        return [symbol for symbol, _ in self.edges[state]]

    def share(self) -> int:
        """Return a hash of the edges, from 0 to 99, that determines the split."""
        return int.from_bytes(hashlib.sha256(repr(self.edges).encode()).digest()[:8], "big") % 100


def minimal_automaton(edges: Edges) -> Automaton:
    """Return the minimal automaton that accepts the same strings (Moore 1956, partition refinement).

    A missing edge leads to a dead state, which rejects; all other states accept.
    """
    block = [0] * len(edges)
    while True:
        signs = [
            (block[state], tuple((symbol, block[to]) for symbol, to in edges[state])) for state in range(len(edges))
        ]
        numbers = {sign: number for number, sign in enumerate(dict.fromkeys(signs))}
        finer = [numbers[sign] for sign in signs]
        if len(numbers) == len(set(block)):
            break
        block = finer
    order, number = [0], {block[0]: 0}  # one state of each block visited, and the block's number
    for state in order:
        for _, to in edges[state]:
            if block[to] not in number:
                number[block[to]] = len(order)
                order.append(to)
    return Automaton(tuple(tuple((symbol, number[block[to]]) for symbol, to in edges[state]) for state in order))


class Automata(TokenTask):
    """Strings of a regular language drawn for each row; each next symbol is to be predicted.

    An automaton has ``states_min`` to ``states`` states, each with 1 to ``edges`` outgoing edges to random states,
    labelled with different symbols of the row's alphabet. It is minimised, and redrawn if too few states are left.
    A string is a walk of 1 to ``string_length`` steps from the start state, every edge equally likely. The strings are
    concatenated, each followed by a separator (the second last id), until the row is full; shorter rows are padded
    (with the last id). Its hash assigns each language to one split, so no test language occurs in training.
    """

    name: Literal["automata"] = "automata"
    vocabulary: int = Field(default=20, ge=6, description="Token ids; the last two are separator and padding.")
    length: int = Field(default=512, ge=4, description="Tokens per row.")
    states_min: int = Field(default=4, ge=1, description="Fewest states of a minimal automaton.")
    states: int = Field(default=12, ge=1, description="Most states.")
    edges: int = Field(default=4, ge=1, description="Most outgoing edges per state.")
    alphabet_min: int = Field(default=4, ge=1, description="Fewest symbols in a row's alphabet; most: all symbols.")
    strings_min: int = Field(default=10, ge=1, description="Fewest strings per row.")
    strings: int = Field(default=20, ge=1, description="Most strings per row.")
    string_length: int = Field(default=50, ge=1, description="Most symbols per string.")
    train_rows: int = Field(default=5_000, ge=0, description="Rows of the training set; 0: new rows in every step.")

    def _check(self) -> None:
        for least, most in (("states_min", "states"), ("strings_min", "strings")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least}: must be at most {most}")
        if not self.edges <= self.alphabet_min <= self.symbols:
            raise ValueError(
                f"alphabet_min: must be between edges, {self.edges}, and the number of symbols, {self.symbols}"
            )
        if self.states_min > 1 and self.edges == 1 and self.alphabet_min == 1:
            raise ValueError("edges: one edge with one symbol gives a single state; raise edges or alphabet_min")

    @property
    def symbols(self) -> int:
        """Return the number of symbols; the id after them is the separator."""
        return self.vocabulary - 2

    def automaton(self, random: np.random.RandomState, split: Split) -> Automaton:
        """Draw the language of a row, as `row` does first. Raises SettingsError if none is found."""
        low, high = SHARES[split]
        for _ in range(MOST_DRAWS):
            found = self._any_automaton(random)
            if len(found.edges) >= self.states_min and low <= found.share() < high:
                return found
        raise SettingsError(
            f"task: none of {MOST_DRAWS:,} languages has {plural(self.states_min, 'state')} and belongs to {split}; "
            "lower task.states_min, or raise task.vocabulary, task.states or task.edges"
        )

    def row(self, random: np.random.RandomState, split: Split) -> Row:
        """Draw one row."""
        language = self.automaton(random, split)
        tokens: list[int] = []
        for _ in range(random.randint(self.strings_min, self.strings + 1)):
            state = 0
            for _ in range(random.randint(1, self.string_length + 1)):
                symbol, state = language.edges[state][random.randint(len(language.edges[state]))]
                tokens.append(symbol)
            tokens.append(self.symbols)
        row = np.full(self.length, self.vocabulary - 1)
        row[: len(tokens)] = tokens[: self.length]
        return {"input_ids": row, "labels": scored_labels(row, np.arange(self.length) < len(tokens))}

    def next_symbols(self, language: Automaton, tokens: np.ndarray) -> np.ndarray:
        """Return the true distribution of each token given the previous ones, float64 [T, symbols].

        Rows are zero where the token is not a symbol: the language does not determine where strings end.
        """
        chances = np.zeros((len(tokens), self.symbols))
        state = 0
        for place, token in enumerate(tokens.tolist()):
            if token >= self.symbols:
                state = 0
                continue
            legal = language.legal(state)
            chances[place, legal] = 1 / len(legal)
            state = language.after(state, token)
        return chances

    def _any_automaton(self, random: np.random.RandomState) -> Automaton:
        states = random.randint(self.states_min, self.states + 1)
        alphabet = random.permutation(self.symbols)[: random.randint(self.alphabet_min, self.symbols + 1)]
        edges = []
        for _ in range(states):
            count = random.randint(1, self.edges + 1)
            labels = np.sort(alphabet[random.permutation(len(alphabet))[:count]])
            edges.append(tuple(zip(labels.tolist(), random.randint(states, size=count).tolist(), strict=True)))
        return minimal_automaton(tuple(edges))

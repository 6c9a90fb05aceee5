"""Count the tokens that a model would read, part by part, without opening one: only its tokenizer is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mesa_eval.parts import Subject, questions
from mesa_eval.reading.batches import Batch
from mesa_eval.reading.model_source import declared_vocabulary, load_tokenizer, tokenizer_fingerprint
from mesa_eval.reading.reader import Reader, TokenScores
from mesa_eval.suite import Plan


class TokenCounter(Reader):
    """Stand in for a model with a cache that knows nothing: every log P is 0 and no answer is the likeliest.

    at_most: whether something was to be written whose length only the model knows, so that the count is a bound.
    """

    at_most = False

    def shares_prefixes(self) -> bool:
        """Return True: transformers' causal models have a cache."""
        return True

    def refuses(self, length: int) -> str:
        """Return "": only the model knows."""
        return ""

    def writes(self) -> bool:
        """Return True: transformers' causal models have `generate`."""
        return True

    def score_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], firsts: Sequence[int], what: str
    ) -> dict[int, TokenScores]:
        """Return zeros for every row."""
        sizes = {row: len(rows[row]) - firsts[row] for batch in batches for row in batch.rows}
        return {
            row: TokenScores(np.zeros(size), np.zeros(size, bool), np.zeros(size, np.int64))
            for row, size in sizes.items()
        }

    def continue_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], most: Sequence[int], stop: str, what: str
    ) -> dict[int, list[int]]:
        """Write as much as is allowed behind every row."""
        self.at_most = self.at_most or bool(batches)
        return {row: [0] * most[row] for batch in batches for row in batch.rows}


@dataclass(frozen=True)
class PartCount:
    """Hold the tokens of one part; at_most: the model decides how much it writes; reason: why it is not asked."""

    name: str
    tokens: int
    at_most: bool
    reason: str = ""


@dataclass(frozen=True)
class ModelCount:
    """Hold what each of `models`, which share a tokenizer and a window, reads."""

    models: tuple[str, ...]
    window: int
    parts: tuple[PartCount, ...]

    @property
    def tokens(self) -> int:
        """Return the sum over the parts."""
        return sum(part.tokens for part in self.parts)


def count_tokens(
    plan: Plan, batch_tokens: int = 8192, trust_remote_code: bool = False, quiet: bool = False
) -> list[ModelCount]:
    """Count what the models of a plan read; models that read the same are counted once.

    Nothing stored is taken into account, and generation counts in full. Raises ValueError as `evaluate` does.
    """
    alike: dict[tuple[str, int, int], list[str]] = {}
    readers: dict[tuple[str, int, int], TokenCounter] = {}
    for source, window in zip(plan.sources, plan.windows, strict=True):
        tokenizer = load_tokenizer(source, trust_remote_code)
        vocabulary = declared_vocabulary(source, tokenizer, trust_remote_code)
        key = (tokenizer_fingerprint(tokenizer), window, vocabulary)
        alike.setdefault(key, []).append(source.name)
        readers[key] = TokenCounter(tokenizer, source.name, vocabulary, batch_tokens, quiet)
    return [
        ModelCount(tuple(names), key[1], tuple(_count_parts(readers[key], plan, key[1], quiet)))
        for key, names in alike.items()
    ]


def _count_parts(reader: TokenCounter, plan: Plan, window: int, quiet: bool) -> list[PartCount]:
    subject = Subject(reader, window, plan.protocol, plan.seed, plan.documents, plan.sample, plan.tasks, plan.missing)
    counts = []
    asked = questions(subject, None)
    console = Console(stderr=True)
    for question in track(
        asked, reader.name, console=console, transient=True, disable=quiet or not console.is_terminal
    ):
        before, reader.at_most = reader.tokens_run, False
        part = question.ask()
        reason = part.task.skipped if part.task else "" if part.measures else part.notes[-1]
        counts.append(PartCount(question.name, reader.tokens_run - before, reader.at_most, reason))
    return counts


def print_counts(plan: Plan, counts: Sequence[ModelCount]) -> None:
    """Print each part with its tokens, their sum, and the suite's budget."""
    budget = plan.protocol.budget
    for count in counts:
        table = Table(title=f"{', '.join(count.models)}: tokens read, window {count.window}", title_justify="left")
        table.add_column("measure")
        table.add_column("tokens", justify="right")
        for part in count.parts:
            words = part.reason or f"{'at most ' if part.at_most else ''}{part.tokens:,}"
            table.add_row(part.name.removeprefix("task/"), words)
        table.add_section()
        bound = "at most " if any(part.at_most for part in count.parts) else ""
        table.add_row("sum, a model", f"{bound}{count.tokens:,}")
        table.add_row(f"budget of {plan.protocol.name}", "none" if budget is None else f"{budget:,}")
        Console().print(table)

"""Count the tokens that a model would read in each part, from its tokenizer alone, and estimate the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from mesa_eval.measures.forecast import Forecast, forecast, resident_bytes
from mesa_eval.measures.parts import measurements
from mesa_eval.measures.plan import EvaluationPlan
from mesa_eval.reading.batches import Batch
from mesa_eval.reading.model_source import declared_vocabulary, tokenizer_fingerprint
from mesa_eval.reading.reader import Reader, TokenScores
from mesalm.hub.open_model import open_tokenizer


class TokenCounter(Reader):
    """A stand-in for a model with a cache: every log P is 0 and no answer is the likeliest.

    at_most: whether the count is an upper bound, because of generation, whose length only the model knows;
    batches, steps: forward passes over given tokens, and those that write one token each.
    """

    at_most = False
    batches = 0
    steps = 0

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
        self.batches += len(batches) + len({(batch.heads, batch.cut) for batch in batches if batch.cut})
        sizes = {row: len(rows[row]) - firsts[row] for batch in batches for row in batch.rows}
        return {
            row: TokenScores(np.zeros(size), np.zeros(size, bool), np.zeros(size, np.int64))
            for row, size in sizes.items()
        }

    def continue_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], most: Sequence[int], stop: str, what: str
    ) -> dict[int, list[int]]:
        """Write the maximum number of tokens after every row."""
        self.at_most = self.at_most or bool(batches)
        self.batches += len(batches)
        self.steps += sum(most[batch.rows[0]] - 1 for batch in batches)
        return {row: [0] * most[row] for batch in batches for row in batch.rows}


@dataclass(frozen=True)
class PartCount:
    """The tokens of one part; at_most: the count is an upper bound; reason: why the part is not asked.

    task: as in `Measurement`; batches, steps: as in `TokenCounter`; seconds: preparation without the model.
    """

    name: str
    task: str
    tokens: int
    at_most: bool
    reason: str = ""
    batches: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelCount:
    """The tokens that each of `models`, which share tokenizer and window, reads, with the forecast for each."""

    models: tuple[str, ...]
    window: int
    parts: tuple[PartCount, ...]
    forecasts: tuple[Forecast, ...] = ()

    @property
    def tokens(self) -> int:
        """Return the sum over the parts."""
        return sum(part.tokens for part in self.parts)

    def seconds(self, model: int, part: PartCount) -> float:
        """Return the expected seconds of a part for the model with this index."""
        return part.seconds + self.forecasts[model].seconds(part.batches, part.tokens, part.steps)


def count_tokens(plan: EvaluationPlan, *, timed: bool = False) -> list[ModelCount]:
    """Count what the models of a plan read; models that read the same are counted once.

    With `timed` each model is opened and reads a few batches, see `mesa_eval.measures.forecast`. Nothing stored is
    taken into account, and generation counts in full. Raises ValueError as `evaluate` does.
    """
    device, trust_remote_code = plan.request.device, plan.request.trust_remote_code
    batch_tokens, quiet = plan.request.batch_tokens, plan.request.quiet
    held = resident_bytes()
    alike: dict[tuple[str, int, int], tuple[TokenCounter, list[str], list[Forecast]]] = {}
    for source, window in zip(plan.sources, plan.windows, strict=True):
        tokenizer = open_tokenizer(source.argument, trust_remote_code=trust_remote_code)
        vocabulary = declared_vocabulary(source, tokenizer, trust_remote_code)
        key = (tokenizer_fingerprint(tokenizer), window, vocabulary)
        reader = TokenCounter(tokenizer, source.name, vocabulary, batch_tokens, quiet)
        _, names, forecasts = alike.setdefault(key, (reader, [], []))
        names.append(source.name)
        if timed:
            forecasts.append(forecast(source, window, device, batch_tokens, trust_remote_code, held=held))
    return [
        ModelCount(tuple(names), window, tuple(count_parts(reader, plan, window, quiet)), tuple(forecasts))
        for (_, window, _), (reader, names, forecasts) in alike.items()
    ]


def count_parts(reader: TokenCounter, plan: EvaluationPlan, window: int, quiet: bool) -> list[PartCount]:
    """Ask the counter everything, and return what each part would read."""
    counts = []
    asked = measurements(reader, window, plan, None)
    for each in tqdm(asked, desc=reader.name, leave=False, disable=quiet or None):
        before, reader.at_most, reader.batches, reader.steps = reader.tokens_run, False, 0, 0
        began = time.perf_counter()
        found = each.run()
        reason = found.task.skipped if found.task else "" if found.measures else found.notes[-1].text
        tokens, seconds = reader.tokens_run - before, time.perf_counter() - began
        work = reader.batches, reader.steps
        counts.append(PartCount(each.name, each.task, tokens, reader.at_most, reason, *work, seconds))
    return counts


def print_counts(plan: EvaluationPlan, counts: Sequence[ModelCount]) -> None:
    """Print each part with its tokens and seconds, their sums, the suite's budget, and the memory of each model."""
    budget = plan.suite.budget
    for count in counts:
        table = Table(title=f"{', '.join(count.models)}: tokens read, window {count.window}", title_justify="left")
        table.add_column("measure")
        table.add_column("tokens", justify="right")
        timed = range(len(count.forecasts))
        for place in timed:
            table.add_column(f"seconds, {escape(count.models[place])}", justify="right")
        bound = "at most " if any(part.at_most for part in count.parts) else ""
        for part in count.parts:
            most = "at most " if part.at_most else ""
            seconds = [f"{most}{count.seconds(place, part):,.1f}" for place in timed]
            words = [part.reason] if part.reason else [f"{most}{part.tokens:,}", *seconds]
            table.add_row(part.task or part.name, *words)
        table.add_section()
        sums = [sum(count.seconds(place, part) for part in count.parts) for place in timed]
        table.add_row("sum per model", f"{bound}{count.tokens:,}", *(f"{bound}{total:,.1f}" for total in sums))
        table.add_row(f"budget of {plan.suite.name}", "none" if budget is None else f"{budget:,}")
        if count.forecasts:
            peaks = [f"{seen.peak_bytes / 1e6:,.0f} MB" for seen in count.forecasts]
            table.add_row("peak memory, weights included", "", *peaks)
        Console().print(table)
    if any(count.forecasts for count in counts):
        print(
            "Seconds are estimated from a few batches of random tokens, read by one process. Generated text counts at"
            " its maximum length, so its tokens and seconds are upper bounds."
        )

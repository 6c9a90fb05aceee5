"""Render a comparison as `report.html`, one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from markupsafe import Markup

from mesa_eval.comparison.record import PRIMARY, Comparison, Row
from mesa_eval.measures.scores import TaskRecord
from mesa_eval.report.figures import position_figure, task_figure, tested_figure, text_figure, training_figure
from mesa_eval.report.tables import chance_words, count_words, state_words
from mesa_eval.report.templating import render
from mesa_eval.report.wording import (
    Summary,
    bracket,
    documents_words,
    number,
    p_words,
    spread_words,
    tested_name,
    tested_score,
)
from mesa_eval.uncertainty.bootstrap import DRAWS, effective_units
from mesalm.wording import plural

GLANCE = (PRIMARY, "bits_per_byte", "perplexity", "in_context", "length_growth", "copy_score", "copy_accuracy")
WORDS = (bracket, chance_words, count_words, number, p_words, spread_words, state_words, tested_name, tested_score)
"""Formatting functions that the template calls by name."""


def render_page(comparison: Comparison, summary: Summary) -> str:
    """Return the page as self-contained HTML, without external resources."""
    records = _records(comparison)
    tasks = [task for task in records.values() if comparison.of_task(task.name)]
    figures = {task.name: _markup(task_figure(comparison, task.name)) for task in tasks}
    # a report on one task opens with its figure
    opening = figures.pop(tasks[0].name) if len(tasks) == 1 else None
    whole = [row for row in comparison.rows if not row.task and not row.group]
    glance = [row for metric in GLANCE for row in whole if row.metric == metric]
    return render(
        "report.html.j2",
        **{words.__name__: words for words in WORDS},
        comparison=comparison,
        names=comparison.names,
        base=comparison.base,
        seeded=comparison.seeded,
        summary=summary,
        arm_of={place: index for index, arm in enumerate(comparison.arms) for place in arm.members},
        others_of=lambda rows: _others(comparison, rows),
        glance=glance,
        documents=documents_words(comparison),
        windows=_window_words(comparison, "position"),
        length_windows=_window_words(comparison, "length"),
        context=comparison.section("context"),
        recall=comparison.section("recall"),
        tasks=tasks,
        task_figures=figures,
        opening_figure=opening,
        skipped=[task for task in records.values() if task not in tasks],
        seeds=[
            (row, index, *pair)
            for row in glance
            for index in comparison.compared
            for pair in (row.differences[index].by_seed if len(row.differences[index].by_seed) > 1 else ())
        ],
        training_figure=_markup(training_figure(comparison)),
        text_figure=_markup(text_figure(comparison)),
        position_figure=_markup(position_figure(comparison, "position", "Loss by position")),
        length_figure=_markup(position_figure(comparison, "length", "Loss past the window")),
        tested_figure=_markup(tested_figure(comparison)),
        first=comparison.scores[0],
        draws=DRAWS,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _records(comparison: Comparison) -> dict[str, TaskRecord]:
    """Return one record per task: from the first model that could run it, or else from one that could not."""
    records: dict[str, TaskRecord] = {}
    for scores in comparison.scores:
        for task in scores.tasks:
            if task.name not in records or (records[task.name].skipped and not task.skipped):
                records[task.name] = task
    return records


def _window_words(comparison: Comparison, section: str) -> str:
    words = []
    for scores in comparison.scores:
        own = [measure for measure in scores.measures if measure.section == section and measure.last]
        for measure in own[-1:]:  # the last bin ends at the end of the window
            counts = np.array(measure.denominator)
            documents = f"{plural(len(counts), 'document')} (effective number {effective_units(counts):.1f})"
            words.append(f"{plural(round(counts.sum()), 'window')} of {measure.last} tokens from {documents}")
    return "; ".join(dict.fromkeys(words))


def _others(comparison: Comparison, rows: Sequence[Row]) -> list[int]:
    """Return the arms with a difference from the baseline, or a reason for its absence, in at least one row."""
    return [
        index
        for index in comparison.compared
        if any(row.differences[index].interval is not None or row.differences[index].reason for row in rows)
    ]


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)

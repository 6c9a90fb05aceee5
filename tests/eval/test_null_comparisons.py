"""Two models of one law, compared many times: how often the report calls one of them better or worse."""

from __future__ import annotations

import numpy as np
import pytest

from mesa_eval.comparison.record import NOT_SIGNIFICANT
from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.scores import Measure, ModelCard, Part, Scores, TaskRecord
from mesa_eval.report.wording import summarise

TASKS, QUERIES, DRAWN, DOCUMENTS, DOMAINS = 30, 25, 2, 40, 12
SHOTS = (2, 4, 8)


def measure(section: str, metric: str, values: np.ndarray, sizes: np.ndarray, **options: object) -> Measure:
    units = [str(place) for place in range(len(values))]
    plain = {"label": metric, "unit": "share", "better": "higher", "digits": 3, "resampled": "query", "items": section}
    numbers = (values * sizes)[:, None].tolist(), sizes[:, None].tolist()
    named = {"section": section, "metric": metric, "units": units}
    return Measure(**named, numerator=numbers[0], denominator=numbers[1], **{**plain, **options})


def null_scores(name: str, seed: int | None, hard: dict[str, np.ndarray], generator: np.random.Generator) -> Scores:
    """Draw one model: the items' hardness is given, all else is chance, and 200 rows come of it."""
    text = {"unit": "bits per byte", "better": "lower", "digits": 4, "resampled": "document", "any_tokenizer": True}
    moved = generator.normal(0, 0.03) if seed is not None else 0.0
    bits = hard["bits"] + moved + generator.normal(0, 0.05, DOCUMENTS)
    parts = [Part("text", "", [measure("text", "bits_per_byte", bits, hard["bytes"], **text)])]
    for domain in range(DOMAINS):
        own = slice(domain, None, 4)
        parts[0].measures.append(
            measure("text", "bits_per_byte", bits[own], hard["bytes"][own], group=str(domain), **text)
        )
    for task in range(TASKS):
        section, rows = f"task/t{task}", []
        for shots in SHOTS:
            chance = np.clip(hard[section] + (0.2 * moved if seed is not None else 0), 0, 1)
            right = (generator.random((QUERIES, DRAWN)) < chance[:, None]).mean(1)
            nats = generator.normal(hard[section], 0.3)
            asked = {"task": f"t{task}", "shots": shots, "label": f"{shots} shots"}
            options = {"chance": 0.2, "x": float(shots), "primary": shots == 8, **asked}
            rows.append(measure(section, "accuracy", right, np.ones(QUERIES), **options))
            rows.append(measure(section, "answer", nats, np.ones(QUERIES), better="lower", **asked))
        parts.append(Part(section, "", rows, task=TaskRecord(f"t{task}", "pair", QUERIES, 1, 5)))
    card = ModelCard(name, name, "M", "mesa", 1000, name, "t", 9, 64, 0, 5000, 7, False)
    card.seed, card.recipe = seed, "" if seed is None else name[0]
    return Scores(card, {"seed": 0, "name": "made"}, "sha", 100, DOCUMENTS, 64, parts, {})


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "trials"), [(1, 200), (3, 100)])
def test_models_of_one_law_are_seldom_called_different(seeds: int, trials: int) -> None:
    called = alone = 0
    for trial in range(trials):
        generator = np.random.default_rng([trial, seeds])
        hard = {f"task/t{task}": generator.uniform(0.1, 0.9, QUERIES) for task in range(TASKS)}
        hard["bits"] = generator.normal(2, 0.3, DOCUMENTS)
        hard["bytes"] = np.minimum(np.exp(generator.normal(0, 1, DOCUMENTS)), 3)
        own = [None] if seeds == 1 else list(range(seeds))
        scores = [null_scores(f"{arm}{seed}", seed, hard, generator) for arm in "ab" for seed in own]
        comparison = build_comparison(scores, 1, draws=1000)  # the standard error is known to 2 %
        assert len(comparison.rows) >= 190
        assert len(comparison.family) == TASKS + 2
        verdicts = [comparison.verdict(row, 0) for row in comparison.rows]
        called += any(words not in ("", NOT_SIGNIFICANT) for words in verdicts)
        assert bool(summarise(comparison).significant) == any(words not in ("", NOT_SIGNIFICANT) for words in verdicts)
        alone += any(row.differences[0].decisive.excludes_zero for row in comparison.rows)
    # nominally 5 %; a sample of so few trials may lie two standard errors above 5 %
    assert called <= 0.05 * trials + 2 * (0.05 * 0.95 * trials) ** 0.5
    assert alone / trials > 0.9  # what it would be if every interval that leaves 0 out were called a difference

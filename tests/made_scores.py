"""Made-up scores with known answers, for tests of comparisons."""

from __future__ import annotations

import numpy as np

from mesa_eval.measures.scores import Measure, ModelCard, Part, Scores, TaskRecord

UNITS = 30
BITS = np.random.default_rng(0).normal(2.0, 0.3, UNITS)


def measure(section: str, metric: str, values: np.ndarray, **options: object) -> Measure:
    plain = {"label": metric, "unit": "share", "better": "higher", "digits": 3, "resampled": "query", "items": section}
    return Measure(
        section=section,
        metric=metric,
        units=[str(place) for place in range(len(values))],
        numerator=values[:, None].astype(float).tolist(),
        denominator=[[1.0] for _ in values],
        **{**plain, **options},
    )


def task_part(task: str, right: np.ndarray, chance: float) -> Part:
    rows = [
        measure(
            f"task/{task}",
            metric,
            right,
            task=task,
            shots=shots,
            label=f"{shots} shots",
            unit=metric,
            chance=chance,
            x=float(shots),
            primary=metric == "accuracy" and shots == 4,
        )
        for shots in (1, 4)
        for metric in ("answer", "accuracy")
    ]
    return Part(f"task/{task}", "", rows, task=TaskRecord(task, "pair", UNITS, 1, 5))


def made(name: str, shift: float, *, seed: int | None = None, recipe: str = "", hits: int = 12) -> Scores:
    """Make one model's scores: bits per byte moved by `shift`, and two tasks, one of them with `hits` of 30 right."""
    model = ModelCard(name, f"runs/{name}", "M", "mesa", 1000, f"f-{name}", "t", 9, 64, 0, 5000, 7, False)
    model.seed, model.recipe = seed, recipe
    model.training = {"valid": [[1e6, 3.0 + shift], [2e6, 2.5 + shift]]}
    noise = np.random.default_rng(len(name) + 7 * (seed or 0)).normal(0, 0.01, UNITS)
    text = {"unit": "bits per byte", "better": "lower", "digits": 4, "resampled": "document", "any_tokenizer": True}
    place = {"better": "lower", "resampled": "document"}
    parts = [
        Part(
            "text", "", [measure("text", "bits_per_byte", BITS + shift + noise, **text, group=end) for end in ("", "a")]
        ),
        Part(
            "positions",
            "",
            [measure("position", "loss", BITS + shift / x, x=float(x), last=x, **place) for x in (1, 2, 4)],
        ),
        task_part("pairs", np.arange(UNITS) < hits, 0.2),
        task_part("labels", np.arange(UNITS) % 2 == 0, 0.25),
    ]
    protocol = {"seed": 0, "name": "made", "command": f"mesalm compare {name}", "text": "text"}
    protocol |= {"documents_available": 30, "document_bytes": None}
    return Scores(model, protocol, "text sha", 100, UNITS, 64, parts, {"python": "3"})


def campaign(seeds: int = 3) -> list[Scores]:
    shifts = [-0.10, -0.12, -0.11, -0.09, -0.1][:seeds]
    arms = [made(f"mesa-s{n}", shift, seed=n, recipe="M", hits=20 + n) for n, shift in enumerate(shifts)]
    return arms + [made(f"softmax-s{n}", 0.0, seed=n, recipe="S", hits=10 + n) for n in range(seeds)]

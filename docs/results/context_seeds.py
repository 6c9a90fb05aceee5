"""Draw what models learn from examples, and print the tables of models with several seeds.

python docs/results/context_seeds.py float32  # of the scores that are kept
python docs/results/context_seeds.py float32 reports/*/scores/context-*.json  # keep these too, in place of older ones
python docs/results/context_seeds.py float32 --seeds 3  # of the first three seeds, which all arms have
python docs/results/context_seeds.py bf16  # the models of the same arms that were trained in bf16
python docs/results/context_seeds.py h200 reports/*/scores/context-gpu-*.json  # the models that were trained on a card
python docs/results/context_seeds.py rules reports/*/scores/rules-*.json  # the models of rules alone

Reads the scores by prompt in docs/results/context/SET/. A point is the mean over seeds; a bar reaches from the worst
seed to the best. Intervals are those that `mesalm compare` tests: paired by seed and by prompt or document, for new
seeds and new items (docs/reports.md).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rule_predictors import Told, balanced, told

from mesa_eval.measures.nulls import null_scores
from mesa_eval.tasks.word_labels import WORD_LABELS
from mesa_eval.uncertainty.bootstrap import Resampled, mean_of, resample, seeds_and_units
from mesalm.draw import MUTED, draw_svg_file, series_colour, series_marker

HERE = Path(__file__).parent
ARMS = {
    "mesa": "mesa",
    "softmax-conv": "softmax with convolution",
    "linear": "linear (no solve)",
    "hybrid": "hybrid (1 softmax layer)",
    "time-softmax-conv": "softmax, mesa's time",
    "delta": "gated delta net",
    "wide-linear": "linear, mesa's state",
    "declared-mesa": "mesa as declared",
    "counted": "naming the label most often shown",
}
PAIRS = (
    ("mesa", "softmax-conv"),
    ("mesa", "linear"),
    ("mesa", "wide-linear"),
    ("mesa", "delta"),
    ("mesa", "declared-mesa"),
    ("declared-mesa", "softmax-conv"),
    ("declared-mesa", "wide-linear"),
    ("declared-mesa", "delta"),
    ("hybrid", "softmax-conv"),
    ("hybrid", "mesa"),
    ("mesa", "time-softmax-conv"),
    *((arm, "counted") for arm in ("mesa", "softmax-conv", "linear", "wide-linear", "delta", "hybrid")),
)
"""Arms whose difference is shown, where both were trained."""
SHOWINGS = (0, 1, 2, 4, 8)
TASKS = ("word_labels", "new_labels", "letter_labels", "noisy_labels")
RULES = {"attribute_rules_of_three": (0, 2, 4, 6), "linear_rules_of_three": (0, 2, 4, 6), "attribute_rules": (0, 8, 32)}
TOLD_LINES = {"nearest, then counting": (0, (1, 2)), "ridge regression": "solid"}
LENGTHS = ("129-256", "257-512", "513-1024", "1025-2048", "2049-4096")


class ModelSet(NamedTuple):
    """Models that are compared: what their runs' names begin with, and what their figure shows.

    `panels` are titles by task, `shown` the numbers of examples; `told` are the accuracies of predictors that are told
    the attributes, by task and number, where there are such predictors; else who counts labels is compared.
    """

    runs: str
    figure: str
    panels: dict[str, str]
    shown: tuple[int, ...]
    axes: tuple[str, str]
    told: Callable[[], Told] | None = None


WORDS = {"word_labels": "labels known from training", "new_labels": "labels never seen in training"}
WORD_AXES = ("times the word was shown with its label", "accuracy among four labels")
SETS = {
    "float32": ModelSet("context(?:-tuned|-fp32)?", "context.svg", WORDS, SHOWINGS, WORD_AXES),
    "bf16": ModelSet("context(?:-tuned)?", "context-bf16.svg", WORDS, SHOWINGS, WORD_AXES),
    "h200": ModelSet("context-gpu", "context-h200.svg", WORDS, SHOWINGS, WORD_AXES),
    "rules": ModelSet(
        "rules(?:-cpu|-(?:qknorm-)?[0-9][^-]*-[0-9])?",
        "context-rules.svg",
        {
            "attribute_rules_of_three": "one attribute of three decides",
            "linear_rules_of_three": "a weighted vote, not in training",
        },
        (0, 2, 4, 6),
        ("examples shown", "accuracy between two labels"),
        told,
    ),
}
"""The sets by the folder of their scores."""

Scores = dict[str, dict[int, dict[str, Resampled]]]
"""For each arm the values of every measure by seed, with their bootstrap draws over prompts or documents."""


def kept(chosen: str) -> Path:
    """Return the file that the scores of a set are kept in."""
    return HERE / f"context/{chosen}/scores.json.gz"


def keep(chosen: str, files: list[Path]) -> None:
    """Keep of score files what the tables need: numerators and denominators by document, window or prompt.

    They join the models that are kept already, and replace those of the same names.
    """
    models = {}
    for file in files:
        scores = json.loads(file.read_text(encoding="utf-8"))
        measures = [measure for part in scores["parts"] for measure in part["measures"]]
        needed = [
            {
                "key": measure["key"],
                **{side: [row[0] for row in measure[side]] for side in ("numerator", "denominator")},
            }
            for measure in measures
            if not re.search("^position/|/(answer|exact)$", measure["key"])
        ]
        model = {name: scores["model"][name] for name in ("name", "parameters", "fingerprint")}
        models[model["name"]] = {"model": model, "versions": scores["versions"], "parts": [{"measures": needed}]}
    older = {one["model"]["name"]: one for one in stored(chosen)}
    text = json.dumps({"scores": list({**older, **models}.values())})
    kept(chosen).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def stored(chosen: str) -> list[dict[str, Any]]:
    """Return the models of a set that are kept."""
    file = kept(chosen)
    return json.loads(gzip.decompress(file.read_bytes()))["scores"] if file.exists() else []


def read_scores(chosen: str) -> Scores:
    """Return all values of a set by arm and seed. Raises ValueError for two models of one arm and seed."""
    found: Scores = {arm: {} for arm in ARMS}
    for one in sorted(stored(chosen), key=lambda scores: scores["model"]["name"]):
        name = one["model"]["name"]
        arm, seed = re.fullmatch(rf"{SETS[chosen].runs}-(.*)-s(\d+)", name).groups()  # type: ignore[union-attr]  # runs are named so
        arm = re.sub(r"^time-[0-9][^-]*-[0-9]-", "time-", arm)
        if int(seed) in found[arm]:
            raise ValueError(f"{name}: another model of arm {arm} has seed {seed}; keep one of the two")
        found[arm][int(seed)] = {
            key: value for part in one["parts"] for m in part["measures"] for key, value in measured(m).items()
        }
    if SETS[chosen].told is None:
        prompts = next(iter(found["mesa"].values()))[f"task/{TASKS[0]}/1/accuracy"].units
        found["counted"] = dict.fromkeys(found["mesa"], label_counts(prompts))
    return found


def label_counts(prompts: int) -> dict[str, Resampled]:
    """Return the accuracies of naming the label that most lines show, or fewest if that is right more often."""
    found = {}
    for task in WORD_LABELS:
        for shown in SHOWINGS:
            asked = [[task.query(index, 0, shown, 0, 0)] for index in range(prompts)]
            guesses = null_scores(task, shown, asked, lambda *_: 1)
            right = max((guesses[name] for name in ("most shown", "least shown")), key=sum)
            sums = np.array([right, np.ones(prompts)])[..., None]
            found[f"task/{task.name}/{shown}/accuracy"] = resample(*sums)
    return found


def measured(measure: dict[str, Any]) -> dict[str, Resampled]:
    """Return a measure by its key; accuracy on rules also over the prompts whose shown labels are balanced."""
    sums = [np.array(measure[side], dtype=float)[:, None] for side in ("numerator", "denominator")]
    found = {measure["key"]: resample(*sums)}
    if match := re.fullmatch(r"task/(.*_of_three)/(\d)/accuracy", measure["key"]):
        chosen = balanced(match[1], int(match[2]))
        found[f"{measure['key']}/balanced"] = resample(*(side[chosen] for side in sums))
    return found


def draw(figure: Figure, chosen: ModelSet, scores: Scores) -> None:
    """Draw a panel per task and a line per arm of three seeds or more; arms that have not mesa's number say theirs."""
    panels = figure.subplots(1, len(chosen.panels), sharey=True)
    ticks = range(len(chosen.shown))
    drawn = [arm for arm in ARMS if len(scores[arm]) >= 3 and arm not in ("declared-mesa", "counted")]
    for panel, (task, title) in zip(panels, chosen.panels.items(), strict=True):
        for place, arm in enumerate(drawn):
            index, seeds = list(ARMS).index(arm), len(scores[arm])
            label = ARMS[arm] if seeds == len(scores["mesa"]) else f"{ARMS[arm]}, {seeds} seeds"
            shares = [
                [seed[f"task/{task}/{shown}/accuracy"].value for seed in scores[arm].values()] for shown in chosen.shown
            ]
            places = [tick + (place - 0.5 * (len(drawn) - 1)) * 0.05 for tick in ticks]
            means = [sum(column) / len(column) for column in shares]
            colour = series_colour(index)
            panel.vlines(places, [min(x) for x in shares], [max(x) for x in shares], color=colour, linewidth=1)
            panel.plot(places, means, color=colour, marker=series_marker(index), label=label)
        for name, line in told_lines(chosen, task).items():
            places = [place for place, shown in enumerate(chosen.shown) if shown in line]
            panel.plot(places, list(line.values()), color=MUTED, linewidth=1.2, linestyle=TOLD_LINES[name], label=name)
        guess = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}
        if scores["counted"]:
            (counts, *_) = scores["counted"].values()
            values = [counts[f"task/{task}/{shown}/accuracy"].value for shown in chosen.shown]
            panel.plot(ticks, values, label=ARMS["counted"], **guess)
        else:
            panel.axhline(0.5, label="chance", **guess)
        panel.set(title=title, xticks=ticks, xticklabels=chosen.shown, ylim=(0.3 * bool(chosen.told), 1.04))
        panel.set_xlabel(chosen.axes[0])
    panels[0].set_ylabel(chosen.axes[1])
    if len(drawn) > 3:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    else:
        panels[1].legend(loc="upper left")


def told_lines(chosen: ModelSet, task: str) -> dict[str, dict[int, float]]:
    """Return the accuracies of the predictors that are told the attributes, by name and number of examples."""
    return {name: chosen.told()[task][name] for name in TOLD_LINES} if chosen.told else {}


def rows(scores: Scores) -> list[str]:
    """Return the tables, Markdown: means over seeds, and the differences of `PAIRS`."""
    wanted = {
        **{f"{task}, {shown} showings": [f"task/{task}/{shown}/accuracy"] for task in TASKS for shown in SHOWINGS},
        **{f"{task}, mean of 1, 2, 4": [f"task/{task}/{n}/accuracy" for n in (1, 2, 4)] for task in TASKS},
        "bits per byte": ["bits_per_byte"],
        "nats on pairs of tokens seen earlier": ["recall/repeated"],
        "nats on other pairs": ["recall/new"],
        **{f"nats at {place}": [f"length/{place}"] for place in LENGTHS},
        "nats, growth with length": ["length_growth"],
        **{f"{task}, {shown} examples": [f"task/{task}/{shown}/accuracy"] for task in RULES for shown in RULES[task]},
        **{
            f"{task}, {shown} examples, as many of each label": [f"task/{task}/{shown}/accuracy/balanced"]
            for task in RULES
            for shown in (2, 4, 6)
        },
    }
    there = next(iter(scores["mesa"].values()))
    scores = {arm: seeds for arm, seeds in scores.items() if seeds}
    pairs = [(one, other) for one, other in PAIRS if one in scores and other in scores]
    titles = ["", *(f"{arm}, {len(seeds)} seeds" for arm, seeds in scores.items())]
    titles += [f"{one} less {other}" for one, other in pairs]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, keys in wanted.items():
        if not all(key in there for key in keys):
            continue
        values = {
            arm: {seed: mean_of([one[key] for key in keys]) for seed, one in seeds.items()}
            for arm, seeds in scores.items()
            if all(key in one for key in keys for one in seeds.values())
        }
        means = [
            f"{np.mean([one.value for one in values[arm].values()]):.3f}" if arm in values else "" for arm in scores
        ]
        gaps = [less(values.get(one, {}), values.get(other, {})) for one, other in pairs]
        lines.append(" | ".join([f"| {name}", *means, *gaps]) + " |")
    return lines


def less(values: dict[int, Resampled], others: dict[int, Resampled]) -> str:
    """Return the mean difference over the seeds that both have, interval and p value; nothing for fewer than two."""
    gaps = [values[seed] - others[seed] for seed in values if seed in others]
    if len(gaps) < 2:
        return ""
    gap = seeds_and_units(gaps)
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.2g}"


def main() -> None:
    """Write the figure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS, help="models")
    parser.add_argument("files", nargs="*", type=Path, help="score files to keep")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of each arm in the tables (default all)")
    arguments = parser.parse_args()
    if arguments.files:
        keep(arguments.set, arguments.files)
    scores = read_scores(arguments.set)
    label = "Accuracy by number of examples of mesa, softmax and linear models"
    chosen = SETS[arguments.set]
    text = draw_svg_file(lambda figure: draw(figure, chosen, scores), (8.2, 4.0), label)
    (HERE / chosen.figure).write_text(text, encoding="utf-8")
    most = arguments.seeds
    print("\n".join(rows({arm: dict(sorted(seeds.items())[:most]) for arm, seeds in scores.items()})))


if __name__ == "__main__":
    main()

"""Score loss by position to eight times the training length, and print the tables.

python docs/results/length_windows.py context/length runs/context-tuned-*-s*  # all readings of these models
python docs/results/length_windows.py context/length  # tables of the scores that are kept

Windows are those of `mesa_eval.measures.length`, all that the test split has or `--windows`. A model is read as trained
("trained"), and with softmax over a sliding window of so many tokens ("window 256"), which is the mixer `window` with
the same weights.

Scores are kept by window in docs/results/NAME.json.gz, and a reading that is there is not made again. Intervals are
those of `mesa_eval.uncertainty` for new seeds and new documents, and differences are paired by seed and document.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.measures.icl_curve import score_windows
from mesa_eval.measures.length import TIMES, length_bins
from mesa_eval.measures.windows import collect_windows
from mesa_eval.reading.documents import held_out_documents
from mesa_eval.reading.scoring import Scorer
from mesa_eval.uncertainty.bootstrap import Resampled, effective_units, group_sums, resample, seeds_and_units
from mesa_eval.uncertainty.intervals import Interval
from mesalm.hub.open_model import open_model

HERE = Path(__file__).parent
SLIDING = "softmax-conv, window 256"
PAIRS = (
    ("mesa, trained", "softmax-conv, trained"),
    ("mesa, trained", SLIDING),
    ("mesa, trained", "linear, trained"),
    ("hybrid, trained", "mesa, trained"),
    ("hybrid, trained", SLIDING),
    ("hybrid, window 256", SLIDING),
)
"""Readings whose difference is shown, where both were made."""
Store = dict[str, Any]
"""`length` T, `owners` of the windows, and `means`: nats per token by "arm, reading", seed, bin and window."""


def open_scorer(run: str, window: int | None) -> Scorer:
    """Return a run's model, with softmax over a sliding window of so many tokens if given."""
    scorer = Scorer.open(run, quiet=True)
    if window is None:
        return scorer
    mixers = scorer.model.config.mixers
    replaced = ["window" if name == "softmax" else name for name in ([mixers] if isinstance(mixers, str) else mixers)]
    model = open_model(run, dtype="float32", mixers=replaced, window=window)
    return Scorer(model, scorer.tokenizer, source=scorer.source, quiet=True)


def score(store: Store, run: str, reading: str, wanted: int) -> bool:
    """Add a reading of a run to the store; False if it is there."""
    arm, seed = re.fullmatch(r".*-(mesa|linear|hybrid|softmax-conv)-s(\d+)", Path(run).name).groups()  # type: ignore[union-attr]  # runs are named so
    kept = store["means"].setdefault(f"{arm}, {reading}", {})
    if seed in kept:
        return False
    scorer = open_scorer(run, int(reading.split()[1]) if reading.startswith("window") else None)
    prepared, length = scorer.source.prepared, scorer.source.sequence_length
    if prepared is None or length is None:
        raise ValueError(f"{run}: is not a run with prepared data; name a run")
    documents = held_out_documents(prepared, "test")
    windows = collect_windows(scorer, documents, TIMES * length, wanted, wanted, seed=0)
    if store.setdefault("owners", [owner for owner, _ in windows]) != [owner for owner, _ in windows]:
        raise ValueError(f"{run}: its windows are not those of the scores that are kept; give another NAME")
    store["length"] = length
    bins = length_bins(length)
    scores = score_windows(scorer, windows, bins[0][0], "length")
    kept[seed] = {f"{one[0]}-{one[1]}": np.round(scores.mean_losses(*one), 4).tolist() for one in bins}
    return True


def values(store: Store, name: str, plus: str, less: str = "") -> dict[str, Resampled]:
    """Return the mean loss of a bin, or the difference of two bins, by seed; documents are the units."""
    found = {}
    for seed, kept in sorted(store["means"][name].items()):
        means = np.array(kept[plus]) - np.array(kept[less] if less else 0.0)
        sums, _ = group_sums(np.stack([means, np.ones(len(means))], axis=1), store["owners"])
        found[seed] = resample(sums[:, :1], sums[:, 1:])
    return found


def difference(ours: dict[str, Resampled], others: dict[str, Resampled]) -> str:
    """Return the difference with its joint interval, nothing where the seeds are not the same."""
    if ours.keys() != others.keys():
        return ""
    return shown(seeds_and_units([ours[seed] - others[seed] for seed in ours]))


def shown(interval: Interval) -> str:
    """Return a value and its interval, if there is one, as the tables show them."""
    ends = "" if interval.low is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.value:+.3f}{ends}".replace("-", "−")


def rows(store: Store) -> list[str]:
    """Return the tables, Markdown: means over seeds, and differences."""
    names = [f"{first}-{last}" for first, last in length_bins(store["length"])]
    counts = np.unique(store["owners"], return_counts=True)[1][:, None]
    readings = list(store["means"])
    pairs = [(one, other) for one, other in PAIRS if one in readings and other in readings]
    means, gaps = [["positions", *readings]], [["positions", *(f"{one} less {other}" for one, other in pairs)]]
    for plus, less in [*((name, "") for name in names), (names[-1], names[0])]:
        found = {name: values(store, name, plus, less) for name in readings}
        each = [seeds_and_units(list(one.values())) for one in found.values()]
        title = f"{plus} less {less}" if less else plus
        means.append([title, *(shown(one) if less else f"{one.value:.3f}" for one in each)])
        gaps.append([title, *(difference(found[one], found[other]) for one, other in pairs)])
    lines = [f"{counts.sum()} windows of {len(counts)} documents, effectively {effective_units(counts):.1f}"]
    for head, *body in (means, gaps):
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body)]
    return lines


def main() -> None:
    """Score what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="file of the scores in docs/results/, without .json.gz")
    parser.add_argument("runs", nargs="*", help="runs to score")
    parser.add_argument("--readings", nargs="+", default=["trained", "window 256"])
    parser.add_argument("--windows", type=int, default=10_000, help="most windows (default: all)")
    given = parser.parse_args()
    path = HERE / f"{given.name}.json.gz"
    store: Store = json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else {"means": {}}
    for run in given.runs:
        for reading in given.readings:
            recurrent = not re.search("softmax|hybrid", Path(run).name)
            if not (recurrent and reading.startswith("window")) and score(store, run, reading, given.windows):
                path.write_bytes(gzip.compress(json.dumps(store).encode(), 9, mtime=0))
    print("\n".join(rows(store)))


if __name__ == "__main__":
    main()

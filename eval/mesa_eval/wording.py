"""Put intervals into words: the sentences and the marks that tables and the page share."""

from __future__ import annotations

from mesa_eval.bootstrap import FEW_UNITS, Interval, holm
from mesa_eval.compare import Comparison, Row

MINUS = "\u2212"

ALWAYS = (
    "Intervals are 95 % percentile bootstrap intervals over documents, sequences or queries; the same ones for"
    " every model. They do not cover the training seed: another seed of the same recipe can move a small model"
    " by about as much as a small difference here."
)


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number with a true minus sign, and a plus sign if asked."""
    text = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    return (MINUS if negative else "+" if signed else "") + text


def bracket(interval: Interval, digits: int, *, signed: bool = False) -> str:
    """Return `[low, high]`, or the reason why there is none."""
    if interval.low is None or interval.high is None:
        return "(one unit: no interval)"
    return f"[{number(interval.low, digits, signed=signed)}, {number(interval.high, digits, signed=signed)}]"


def verdict(row: Row, interval: Interval) -> str:
    """Return "better", "worse", "differs" or "no difference told" for a difference."""
    if not interval.tells:
        return "no difference told"
    if not row.better:
        return "differs"
    return "better" if (interval.value < 0) == (row.better == "lower") else "worse"


def summary(comparison: Comparison) -> list[str]:
    """Write what the intervals say of each model against the baseline: bits per byte, context, shots."""
    base = comparison.names[comparison.baseline]
    sentences = []
    for index in comparison.compared:
        name = comparison.names[index]
        row = comparison.row("bits_per_byte")
        if row is not None:
            sentences.append(_sentence(row, index, name, base, "bits per byte over all text"))
        for key, what in (("in_context", "nats per token in the {}"), ("copy_accuracy", "in copy accuracy")):
            for row in comparison.starting(key):
                if row.differences[index].interval is None:
                    continue
                sentences.append(_sentence(row, index, name, base, what.format(row.label.split(" (")[0])))
        shots = _shots_sentence(comparison, index, name, base)
        if shots:
            sentences.append(shots)
    return sentences


def few_units(comparison: Comparison) -> str | None:
    """Return a warning if a text row rests on so few documents that its interval is too narrow."""
    labels = [
        row.label
        for row in comparison.section("text")
        if any(value is not None and value.units < FEW_UNITS for value in row.values)
    ]
    if not labels:
        return None
    return (
        f"Fewer than {FEW_UNITS} documents stand behind: {', '.join(labels)}. Their intervals are too narrow to be"
        " trusted."
    )


def _sentence(row: Row, index: int, name: str, base: str, what: str) -> str:
    interval = row.differences[index].interval
    if interval is None:
        return f"{name} against {base}, {what}: not compared ({row.differences[index].reason})."
    if not interval.tells or interval.low is None or interval.high is None:
        amount = f"{number(interval.value, row.digits, signed=True)} {bracket(interval, row.digits, signed=True)}"
        return f"No difference can be told between {name} and {base}: {amount} {what}."
    direction = "lower" if interval.value < 0 else "higher"
    low, high = sorted((abs(interval.low), abs(interval.high)))
    size = number(abs(interval.value), row.digits)
    amount = f"{size} [{number(low, row.digits)}, {number(high, row.digits)}]"
    return f"{name} is {direction} than {base} by {amount} {what}, which is {verdict(row, interval)}."


def _shots_sentence(comparison: Comparison, index: int, name: str, base: str) -> str:
    """Count the tasks whose accuracy differs at the most shots both have, after Holm's correction."""
    last: dict[str, Row] = {}
    for row in comparison.rows:
        accuracy = row.section.startswith("task/") and row.key.endswith("/accuracy")
        if accuracy and row.differences[index].interval is not None:
            last[row.section] = row
    found = [(row, row.differences[index].interval) for row in last.values()]
    pairs = [(row, interval) for row, interval in found if interval is not None and interval.p is not None]
    if not pairs:
        return ""
    adjusted = holm([interval.p for _, interval in pairs if interval.p is not None])
    verdicts = [verdict(row, interval) for (row, interval), p in zip(pairs, adjusted, strict=True) if p < 0.05]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    return (
        f"Few-shot accuracy at the most shots, {len(pairs)} task{'s' if len(pairs) != 1 else ''} with Holm's"
        f" correction: {name} is better than {base} on {better}, worse on {worse}; on"
        f" {len(pairs) - better - worse} no difference can be told."
    )

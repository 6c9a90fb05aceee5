"""Put intervals into words: the sentences and the marks that tables and the page share."""

from __future__ import annotations

from dataclasses import dataclass

from mesa_eval.comparison import PRIMARY, Comparison, Difference, Row
from mesa_eval.uncertainty.intervals import FEW_UNITS, Interval

MINUS = "\u2212"
PERCENTILE = (
    "Intervals are 95 % percentile bootstrap intervals over documents, sequences or queries; the same ones for every"
    " model."
)
ONE_SEED = (
    "They do not cover the training seed: another seed of the same recipe can move a small model by about as much as a"
    " small difference here."
)
SEVERAL_SEEDS = (
    "Over training seeds intervals are Student’s t, paired by seed; each seed is shown as well. A difference counts as"
    " told when the interval for new seeds and new documents or queries together leaves 0 out."
)


@dataclass(frozen=True)
class Summary:
    """Hold a comparison in words: what was compared, what can be told, what cannot, and how far to trust it."""

    compared: str
    told: list[str]
    untold: list[str]
    limits: list[str]

    @property
    def sentences(self) -> list[str]:
        """Return what can and what cannot be told, one sentence after another."""
        return [*self.told, *self.untold]


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number with a true minus sign, and a plus sign if asked; a zero has none."""
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def bracket(interval: Interval, digits: int, *, signed: bool = False) -> str:
    """Return `[low, high]`, or the reason why there is none."""
    if interval.low is None or interval.high is None:
        return "(one unit: no interval)"
    return f"[{number(interval.low, digits, signed=signed)}, {number(interval.high, digits, signed=signed)}]"


def plural(count: int, word: str) -> str:
    """Return a count with its noun, such as 1 query, 2 queries, 3 documents."""
    if count != 1:
        word = word[:-1] + "ies" if word.endswith("ry") else word + "s"
    return f"{count:,} {word}"


def spread_words(row: Row, difference: Difference) -> list[tuple[str, str]]:
    """Return each interval of a difference with what it covers: seeds, units, both; one alone needs no name."""
    if difference.interval is None:
        return []
    if difference.joint is None or difference.items is None:
        return [(bracket(difference.interval, row.digits, signed=True), "")]
    seeds = plural(len(difference.by_seed), "seed")
    named = ((difference.interval, seeds), (difference.items, row.resampled + "s"), (difference.joint, "both"))
    return [
        (bracket(found, row.digits, signed=True), name.replace("querys", "queries"))
        for found, name in named
        if found.low is not None
    ]


def summarise(comparison: Comparison) -> Summary:
    """Say what the intervals tell of each arm against the baseline: the average, text, context, tasks."""
    told: list[str] = []
    untold: list[str] = []
    for index in comparison.compared:
        for row, what in _headlines(comparison):
            sentence = _sentence(comparison, row, index, what)
            found = row.differences[index].decisive
            (told if found is not None and found.tells else untold).append(sentence)
        claims = comparison.claims(index)
        if claims:
            decided = any(claim.verdict != "no difference told" for claim in claims)
            (told if decided else untold).append(_claims_sentence(comparison, index))
    return Summary(_compared(comparison), told, untold, _limits(comparison))


def _headlines(comparison: Comparison) -> list[tuple[Row, str]]:
    rows = [(comparison.row(PRIMARY), "in the {}"), (comparison.row("bits_per_byte"), "bits per byte over all text")]
    rows += [(row, "nats per token in the {}") for row in comparison.starting("in_context")]
    rows += [(row, "nats per token in the {}") for row in comparison.starting("length_growth")]
    rows += [(row, "in copy accuracy") for row in comparison.starting("copy_accuracy")]
    shown = [row for row in rows if row[0] is not None]
    return [(row, what.format(row.label.split(" (")[0])) for row, what in shown if row is not None]


def _compared(comparison: Comparison) -> str:
    """Return one sentence on what was compared: arms, seeds, training, text and tasks."""
    arms = []
    for index, arm in enumerate(comparison.arms):
        card = comparison.members(index)[0].model
        trained = "" if card.tokens_trained is None else f" trained on {_amount(card.tokens_trained)} tokens"
        arms.append(f"{arm.name} ({_amount(card.parameters)} parameters{trained}, {_seeds(arm.seeds)})")
    asked = len(comparison.task_sections())
    tasks = f" and {plural(asked, 'few-shot task')}" if asked else ""
    text = f"{documents_words(comparison)} of held-out text{tasks}"
    listed = " and ".join(arms) if len(arms) < 3 else ", ".join(arms[:-1]) + f" and {arms[-1]}"
    lead = f"Measured on the same {text}: {listed}."
    return f"{lead} Differences are against {comparison.base}." if comparison.compared else lead


def documents_words(comparison: Comparison) -> str:
    """Return the number of documents of the text, with the effective number behind it."""
    words = plural(comparison.scores[0].documents, "document")
    row = next(iter(comparison.section("text")), None)
    return words if row is None else f"{words} (effective number {row.effective:.1f})"


def _amount(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,}"


def _seeds(seeds: tuple[int | None, ...]) -> str:
    if seeds == (None,):
        return "one model"
    return plural(len(seeds), "training seed").replace("1 training seed", "one training seed")


def _limits(comparison: Comparison) -> list[str]:
    words = [PERCENTILE]
    pairs = {len(row.differences[i].by_seed) for row in comparison.rows for i in comparison.compared}
    if comparison.seeded:
        words.append(SEVERAL_SEEDS)
    if 1 in pairs or not comparison.seeded:
        words.append(ONE_SEED)
    if 2 in pairs:
        words.append("Two seeds are very few: take at least three.")
    few = few_units(comparison)
    reasons = {row.differences[i].reason for row in comparison.rows for i in comparison.compared} - {""}
    if reasons:
        words.append(f"Where rows are not compared they say why: {'; '.join(sorted(reasons))}.")
    return [*words, few] if few else words


def few_units(comparison: Comparison) -> str:
    """Return a warning if rows rest on so few documents, by their effective number, that intervals are too narrow."""
    labels: list[str] = []
    for row in comparison.rows:
        over_units = any(value is not None and value.freedom is None for value in row.values)
        over_units = over_units or any(difference.items is not None for difference in row.differences)
        if row.resampled == "document" and over_units and row.effective < FEW_UNITS:
            labels.append(row.label if row.section == "text" else f"section {row.section}")
    labels = list(dict.fromkeys(labels))
    if not labels:
        return ""
    shown = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
    few = f"An effective number of fewer than {FEW_UNITS} documents stands behind"
    return f"{few}: {shown}. Their intervals are too narrow to be trusted."


def _sentence(comparison: Comparison, row: Row, index: int, what: str) -> str:
    name, base, difference = comparison.names[index], comparison.base, row.differences[index]
    found = difference.decisive
    if found is None:
        return f"{name} against {base}, {what}: not compared ({difference.reason})."
    amount = f"{number(found.value, row.digits, signed=True)} {bracket(found, row.digits, signed=True)}"
    if not found.tells or found.low is None or found.high is None:
        return f"No difference can be told between {name} and {base}: {amount} {what}."
    direction = "lower" if found.value < 0 else "higher"
    low, high = sorted((abs(found.low), abs(found.high)))
    amount = f"{number(abs(found.value), row.digits)} [{number(low, row.digits)}, {number(high, row.digits)}]"
    return f"{name} is {direction} than {base} by {amount} {what}, which is {row.verdict(index)}."


def _claims_sentence(comparison: Comparison, index: int) -> str:
    """Count the tasks whose score differs after Holm's correction, and name them."""
    claims = comparison.claims(index)
    better = [claim.task for claim in claims if claim.verdict == "better"]
    worse = [claim.task for claim in claims if claim.verdict == "worse"]

    def listed(tasks: list[str]) -> str:
        return f"{len(tasks)} ({', '.join(tasks)})" if tasks else "0"

    lead = f"Task by task, {plural(len(claims), 'task')} with Holm’s correction:"
    name, base = comparison.names[index], comparison.base
    if not better and not worse:
        return f"{lead} no difference can be told between {name} and {base} on any."
    rest = len(claims) - len(better) - len(worse)
    return (
        f"{lead} {name} is better than {base} on {listed(better)}, worse on {listed(worse)}; on {rest} no difference"
        " can be told."
    )

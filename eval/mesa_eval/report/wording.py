"""Wording of results: numbers, intervals and summary sentences that the tables and the page share."""

from __future__ import annotations

from dataclasses import dataclass

from mesa_eval.comparison.record import CORRECTION, LEAST, NOT_SIGNIFICANT, Comparison, Difference, FamilyTest, Row
from mesa_eval.uncertainty.intervals import FEW_UNITS, Interval
from mesalm.wording import plural

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
    "Intervals over training seeds are Student’s t, paired by seed; each seed is shown as well. They are for the"
    " difference for new seeds and new documents or queries together."
)


@dataclass(frozen=True)
class Summary:
    """A comparison in words: what was compared and tested, which results are significant, and the caveats."""

    compared: str
    family: str
    significant: list[str]
    insignificant: list[str]
    limits: list[str]

    @property
    def sentences(self) -> list[str]:
        """Return the sentences about significant results, then those about insignificant ones."""
        return [*self.significant, *self.insignificant]


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Format a number with a true minus sign, and with a plus sign if `signed`; zero has no sign."""
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def bracket(interval: Interval, digits: int, *, signed: bool = False) -> str:
    """Format the interval as `[low, high]`, or state why there is none."""
    if interval.low is None or interval.high is None:
        return "(one unit: no interval)"
    return f"[{number(interval.low, digits, signed=signed)}, {number(interval.high, digits, signed=signed)}]"


def spread_words(row: Row, difference: Difference) -> list[str]:
    """Format each interval of a difference with what it covers: seeds, units or both; a single one has no label."""
    if difference.interval is None:
        return []
    if difference.joint is None or difference.items is None:
        return [bracket(difference.interval, row.digits, signed=True)]
    seeds = plural(len(difference.by_seed), "seed")
    named = ((difference.interval, seeds), (difference.items, row.resampled + "s"), (difference.joint, "both"))
    return [
        f"{bracket(found, row.digits, signed=True)} {name.replace('querys', 'queries')}"
        for found, name in named
        if found.low is not None
    ]


def summarise(comparison: Comparison) -> Summary:
    """Summarise the declared family's tests of each arm against the baseline; other rows get no verdict."""
    significant: list[str] = []
    insignificant: list[str] = []
    for index in comparison.compared:
        for row in comparison.family_rows():
            if not row.task:
                known = comparison.verdict(row, index) not in ("", NOT_SIGNIFICANT)
                (significant if known else insignificant).append(_sentence(comparison, row, index))
        tests = [test for test in comparison.tests(index) if test.task]
        if tests:
            decided = any(test.verdict != NOT_SIGNIFICANT for test in tests)
            (significant if decided else insignificant).append(_tasks_sentence(comparison, index, tests))
    return Summary(_compared(comparison), _family(comparison), significant, insignificant, _limits(comparison))


def tested_name(test: FamilyTest) -> str:
    """Return the name of a test in the family: its task or its row."""
    return test.task or ("bits per byte, all text" if test.row.key == "bits_per_byte" else test.row.label)


def tested_score(test: FamilyTest) -> str:
    """Return the description of the score that a test in the family compares."""
    return f"{test.row.unit}, {test.row.label}" if test.task else test.row.unit


def p_words(p: float) -> str:
    """Format a p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _family(comparison: Comparison) -> str:
    """Describe the declared tests: the rows, the number of tests, and the correction."""
    if not comparison.family:
        return "No tests: nothing is compared."
    family = comparison.family_rows()
    tasks = sum(bool(row.task) for row in family)
    rows = ["bits per byte" if row.metric == "bits_per_byte" else row.label for row in family if not row.task]
    named = [*rows, f"one score of each of {plural(tasks, 'task')}"] if tasks else rows
    arms = f", for each of {len(comparison.compared)} models" if len(comparison.compared) > 1 else ""
    return (
        f"Declared family of tests: {_listed(named)}{arms}; {plural(len(comparison.family), 'test')}, p values adjusted"
        f" by {CORRECTION} over all of them at once, significant below {LEAST:g}. Other rows are shown without a"
        " verdict: among many intervals of 95 % some exclude 0 by chance."
    )


def _listed(words: list[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def _compared(comparison: Comparison) -> str:
    """Describe what was compared: arms, seeds, training, text and tasks."""
    arms = []
    for index, arm in enumerate(comparison.arms):
        card = comparison.members(index)[0].model
        trained = "" if card.tokens_trained is None else f" trained on {_amount(card.tokens_trained)} tokens"
        arms.append(f"{arm.name} ({_amount(card.parameters)} parameters{trained}, {_seeds(arm.seeds)})")
    asked = len(comparison.tasks)
    tasks = f" and {plural(asked, 'few-shot task')}" if asked else ""
    text = f"{documents_words(comparison)} of held-out text{tasks}"
    asked_of = {(item.text_fingerprint, item.protocol["name"], item.protocol["seed"]) for item in comparison.scores}
    alike = "the same" if len(asked_of) == 1 else "different texts, suites or seeds, the first on"
    lead = f"Measured on {alike} {text}: {_listed(arms)}."
    return f"{lead} Differences are against {comparison.base}." if comparison.compared else lead


def documents_words(comparison: Comparison) -> str:
    """Format the number of documents in the text, followed by their effective number."""
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
        words.append(f"Some rows are not compared: {'; '.join(sorted(reasons))}.")
    return [*words, few] if few else words


def few_units(comparison: Comparison) -> str:
    """Return a warning about rows with too few effective documents for a reliable interval, or an empty string."""
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
    few = f"Fewer than {FEW_UNITS} effective documents are behind"
    return f"{few}: {shown}. Their intervals are too narrow to be trusted."


def _sentence(comparison: Comparison, row: Row, index: int) -> str:
    name, base, difference = comparison.names[index], comparison.base, row.differences[index]
    found, verdict = difference.decisive, comparison.verdict(row, index)
    what = "bits per byte over all text" if row.key == "bits_per_byte" else f"in the {row.label}"
    if found is None:
        return f"{name} against {base}, {what}: not compared ({difference.reason})."
    amount = f"{number(found.value, row.digits, signed=True)} {bracket(found, row.digits, signed=True)}"
    if verdict in ("", NOT_SIGNIFICANT) or found.low is None or found.high is None:
        return f"No significant difference between {name} and {base}: {amount} {what}."
    direction = "lower" if found.value < 0 else "higher"
    low, high = (found.low, found.high) if found.value > 0 else (-found.high, -found.low)
    amount = f"{number(abs(found.value), row.digits)} [{number(low, row.digits)}, {number(high, row.digits)}]"
    return f"{name} is {direction} than {base} by {amount} {what}, which is {verdict}."


def _tasks_sentence(comparison: Comparison, index: int, tests: list[FamilyTest]) -> str:
    """Count and name the tasks whose difference is significant after correction over the whole family."""
    better = [test.task for test in tests if test.verdict == "better"]
    worse = [test.task for test in tests if test.verdict == "worse"]

    def listed(tasks: list[str]) -> str:
        return f"{len(tasks)} ({', '.join(tasks)})" if tasks else "0"

    lead = f"Task by task, {plural(len(tests), 'task')}:"
    name, base = comparison.names[index], comparison.base
    if not better and not worse:
        return f"{lead} no significant difference between {name} and {base} on any."
    rest = len(tests) - len(better) - len(worse)
    return (
        f"{lead} {name} is better than {base} on {listed(better)}, worse on {listed(worse)}; on {rest} no significant"
        " difference."
    )

"""The report of the laboratory: one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mesalm.files import write_text
from mesalm.lab.claim_runs import RESULTS, ClaimResult, mean_quantities, read_results, run_command
from mesalm.lab.claim_table import load_table
from mesalm.lab.claims import TABLE, Claim, Criterion, Findings, Ruling, Size, Study, judge
from mesalm.lab.findings_figure import draw_findings
from mesalm.settings import SettingsError
from mesalm.wording import plural

STORY = (
    ("What layers can compute", (1, 2, 3, 4)),
    ("One linear layer, trained", (5, 6, 15)),
    ("Deeper linear nets, and one mesa layer", (7, 8, 9, 10)),
    ("Softmax nets copy first, and are nearly linear then", (11, 12, 16, 13, 14)),
    ("Nonlinear dynamics", (20,)),
    ("Learning from pairs in context", (17, 18)),
    ("Language", (19,)),
)
"""The order of the paper's claims on the page: the title of each part and its claim numbers."""
VERDICTS = {True: ("reproduced", "yes"), False: ("not reproduced", "no"), None: ("not run", "none")}


def write_page(results: Path = RESULTS, size: Size = "small", page: Path | None = None, *, file: Path = TABLE) -> Path:
    """Write the page of all claims from the results in a folder, by default into it; return the page's path.

    The paper's claims come in the order of `STORY`. Studies that have a result follow the claims.
    Raises SettingsError if there are no results of this size.
    """
    import jinja2

    found = read_results(results, size, file)
    if not found:
        command = run_command("all", size, file=file)
        raise SettingsError(f"{results}: holds no results of {size} size; run `{command}` first")
    table = load_table(file)
    items = [
        _item(name, claim, found[name], size) if name in found else _item_not_run(name, claim)
        for name, claim in table.claims.items()
    ]
    studies = [
        _study(name, study, table.claims[study.sizes_of], found)
        for name, study in table.studies.items()
        if name in found
    ]
    for item in (*items, *studies):
        if item["seeds"]:
            item["command"] = run_command(item["name"], size, found[item["name"]].first_seed, item["seeds"], file)
    parts = story(items, STORY if table.studies else ())
    latest = [claim["decides"]["verdict"] for part in parts for claim in part["claims"]]
    counts = {
        word: latest.count(verdict) for word, (verdict, _) in zip(("yes", "no", "open"), VERDICTS.values(), strict=True)
    }
    source = Path(__file__).with_name("templates") / "claims.html.j2"
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        source.read_text(encoding="utf-8")
    )
    page = page or results / f"claims-{size}.html"
    write_text(
        page, template.render(parts=parts, studies=studies, counts=counts, size=size, table=table, plural=plural) + "\n"
    )
    return page


def story(items: list[dict[str, Any]], order: Sequence[tuple[str, tuple[int, ...]]]) -> list[dict[str, Any]]:
    """Return the parts of the page with their claims, and the versions of each claim, newest first.

    ``order`` gives the title and claim numbers of each part; all other claims follow in a part without a title. The
    newest version that has a result decides a claim.
    """
    numbers = list(dict.fromkeys(item["claim"].number for item in items))
    placed = {number for _, part in order for number in part}
    rest = tuple(number for number in numbers if number not in placed)
    parts = []
    for title, own in [*order, ("", rest)]:
        claims = []
        for number in own:
            versions = [item for item in items if item["claim"].number == number][::-1]
            run = [item for item in versions if item["seeds"]]
            if versions:
                claims.append({"number": number, "versions": versions, "decides": (run or versions)[0]})
        if claims:
            parts.append({"title": title, "claims": claims})
    return parts


def room(criterion: Criterion, value: float) -> float:
    """Return the distance to the nearest bound relative to it (absolute for bound 0), negative if it is violated.

    NaN for a value that is not finite.
    """
    if not math.isfinite(value):
        return math.nan
    signs = {"at_most": 1.0, "below": 1.0, "at_least": -1.0, "above": -1.0}
    return min(signs[name] * (bound - value) / (abs(bound) or 1.0) for name, bound in criterion.bounds.items())


def _item_not_run(name: str, claim: Claim) -> dict[str, Any]:
    """Return the page's data for a claim without a result: its criteria."""
    verdict, style = VERDICTS[None]
    rows = [{"quantity": criterion.quantity, "bound": criterion.words()} for criterion in claim.criteria]
    item = {"name": name, "claim": claim, "verdict": verdict, "style": style, "rows": rows}
    return {**item, "seeds": 0, "by_seed": [], "closest": "", "room": ""}


def _item(name: str, claim: Claim, result: ClaimResult, size: Size) -> dict[str, Any]:
    """Return the page's data for a claim with a result."""
    found = result.seeds
    rulings = judge(claim, [findings.values for findings in found])
    verdict, style = VERDICTS[_verdict(claim, found)]
    asked = {criterion.quantity for criterion in claim.criteria}
    # violated criteria come first, including values for which `room` is NaN
    nearest = min(rulings, key=lambda ruling: (ruling.holds, room(ruling.criterion, ruling.mean)))
    return {
        "name": name,
        "claim": claim,
        "verdict": verdict,
        "style": style,
        "seeds": len(found),
        "by_seed": [(seed, *VERDICTS[_verdict(claim, [each])]) for seed, each in enumerate(found, result.first_seed)],
        "closest": f"{nearest.mean:.4g}, {nearest.criterion.words()}",
        "room": _percent(nearest),
        "rows": [_row(ruling, [seed.values[ruling.criterion.quantity] for seed in found]) for ruling in rulings],
        "controls": _in_digits({key: mean for key, mean in mean_quantities(found).items() if key not in asked}),
        "figure": Markup(draw_findings(found[0], name, claim.curves_beside(size))),
        "notes": found[0].notes,
    }


def _verdict(claim: Claim, found: Sequence[Findings]) -> bool:
    """Return whether the mean over seeds meets every criterion."""
    return all(ruling.holds for ruling in judge(claim, [each.values for each in found]))


def _study(name: str, study: Study, claim: Claim, results: dict[str, ClaimResult]) -> dict[str, Any]:
    """Return the page's data for a study: its quantities, and its claim's criteria and results."""
    found = results[name].seeds
    quantities = mean_quantities(found)
    of_claim = dict(_in_digits(mean_quantities(results[study.sizes_of].seeds))) if study.sizes_of in results else {}
    bounds = {criterion.quantity: criterion.words() for criterion in claim.criteria}
    return {
        "name": name,
        "question": study.question,
        "sizes_of": study.sizes_of,
        "changes": ", ".join(f"{key} {value}" for key, value in study.changes.items()),
        "seeds": len(found),
        "rows": [
            {"quantity": key, "value": value, "claim": of_claim.get(key, ""), "bound": bounds.get(key, "")}
            for key, value in _in_digits(quantities)
        ],
        "compared": not quantities.keys().isdisjoint(of_claim),
        "figure": Markup(draw_findings(found[0], name)),
        "notes": found[0].notes,
    }


def _in_digits(quantities: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{value:.4g}") for name, value in quantities.items()]


def _row(ruling: Ruling, values: list[float]) -> dict[str, str]:
    seeds = " (" + ", ".join(f"{value:.4g}" for value in values) + ")" if len(values) > 1 else ""
    return {
        "quantity": ruling.criterion.quantity,
        "value": f"{ruling.mean:.4g}{seeds}",
        "bound": ruling.criterion.words(),
        "holds": "yes" if ruling.holds else "no",
        "room": _percent(ruling),
    }


def _percent(ruling: Ruling) -> str:
    percent = 100 * room(ruling.criterion, ruling.mean)
    return f"{percent:+,.0f} %" if abs(percent) >= 1000 else f"{percent:+.3g} %"

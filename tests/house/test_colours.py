"""All pages wear the same colours; rooms that may not import each other hold a sheet each."""

from __future__ import annotations

import re
from pathlib import Path

from mesalm.draw import LIGHT, NAMES

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "eval/mesa_eval/report/templates/report.css"
CLAIMS = ROOT / "mesalm/lab/templates/claims.html.j2"
OWN_NAMES = {"yes": "better", "no": "worse"}


def colours(sheet: Path) -> list[dict[str, str]]:
    """Return the colours of a sheet by their name: those of the light page, and those of the dark one."""
    light, dark = re.split(r"@media screen and \(prefers-color-scheme: dark\)", sheet.read_text(encoding="utf-8"))[:2]
    found = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in (light, dark)]
    return [{OWN_NAMES.get(name, name): colour for name, colour in part.items()} for part in found]


def test_the_page_of_claims_has_the_colours_of_the_report() -> None:
    for claims, report in zip(colours(CLAIMS), colours(REPORT), strict=True):
        assert {"page", "ink", "muted", "grid", "better", "worse", "series-1", "series-8"} <= claims.keys()
        assert claims.items() <= report.items()


def test_a_figure_of_its_own_has_the_colours_of_the_light_page() -> None:
    assert set(LIGHT) == set(NAMES.values())
    assert LIGHT.items() <= colours(REPORT)[0].items()

"""Comparisons of made-up scores with known answers: seeds, the average, Holm, and the page of each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from made_scores import BITS, UNITS, campaign, made, measure
from rich.console import Console

from mesa_eval.comparison.record import PRIMARY
from mesa_eval.comparison.rows import (
    OTHER_ITEMS,
    OTHER_SEED,
    OTHER_TEXT,
    OTHER_TOKENIZER,
    OTHER_WINDOW,
    build_comparison,
)
from mesa_eval.measures.scores import Part
from mesa_eval.report import figures
from mesa_eval.report.files import report_data, write_report
from mesa_eval.report.markdown_report import render_markdown
from mesa_eval.report.page import render_page
from mesa_eval.report.tables import print_comparison
from mesa_eval.report.wording import summarise
from mesa_eval.uncertainty.intervals import paired_t


def test_seeds_are_paired_and_shown() -> None:
    scores = campaign()
    comparison = build_comparison(scores, 1)
    assert comparison.names == ["mesa", "softmax"]
    row = comparison.row("bits_per_byte")
    means = [np.mean(item.measure("bits_per_byte").numerator) for item in scores]
    assert row.by_seed == (pytest.approx(tuple(means[:3])), pytest.approx(tuple(means[3:])))
    expected = paired_t(means[:3], means[3:])
    difference = row.differences[0]
    assert (difference.interval.value, difference.interval.low, difference.interval.p) == pytest.approx(
        (expected.value, expected.low, expected.p)
    )
    assert [seed for seed, _ in difference.by_seed] == [0, 1, 2]
    assert difference.items.value == pytest.approx(expected.value)
    assert difference.joint.low <= difference.interval.low < difference.interval.high <= difference.joint.high
    assert comparison.verdict(row, 0) == "better"
    assert row.values[0].freedom == 2
    assert "mesa is lower than softmax by " in summarise(comparison).significant[0]
    assert any("Student" in words for words in summarise(comparison).limits)


def test_seeds_without_a_partner_are_told_of() -> None:
    """The values 2.5 and 2.2 of a report must not seem to differ by 0.1."""
    words = "values are means over all seeds, differences only over seeds of both"
    scores = campaign()
    assert build_comparison(scores[:5], 1).notes == [f"mesa less softmax: {words}: 0, 1"]
    assert build_comparison(scores[:4], 1).notes == [f"mesa less softmax-s0: {words}: 0"]
    assert build_comparison(scores, 1).notes == []
    assert build_comparison([*scores[:3], made("fixed", 0)], 1).notes == []  # compared with each seed


def test_few_units_are_judged_by_their_effective_number() -> None:
    """Thirty documents of which five hold nearly all the bytes tell as much as five."""
    weights = [[1000.0] if place < 5 else [1.0] for place in range(UNITS)]
    scores = [made("mesa", -0.1), made("softmax", 0.0)]
    assert not any("effective" in words for words in summarise(build_comparison(scores, 1)).limits)
    for item in scores:
        for key in ("bits_per_byte", "position/1"):
            item.measure(key).denominator = weights
    comparison = build_comparison(scores, 1)
    assert comparison.row("bits_per_byte").effective == pytest.approx(5025**2 / 5000025)
    (warned,) = [words for words in summarise(comparison).limits if "too narrow" in words]
    assert "Fewer than 10 effective documents" in warned
    assert ": bits_per_byte, section position." in warned
    assert f"{UNITS} documents (effective number 5.1)" in summarise(comparison).compared


def test_seeds_that_disagree_tell_nothing() -> None:
    scores = [made(f"m-s{n}", shift, seed=n, recipe="M") for n, shift in enumerate((-0.3, 0.1, -0.2))]
    scores += [made(f"s-s{n}", 0.0, seed=n, recipe="S") for n in range(3)]
    comparison = build_comparison(scores, 1)
    difference = comparison.row("bits_per_byte").differences[0]
    assert difference.items.excludes_zero  # these three runs are better on any documents
    assert comparison.verdict(comparison.row("bits_per_byte"), 0) == "not significant"


def test_one_pair_is_compared_over_its_units() -> None:
    comparison = build_comparison([made("a", -0.1), made("b", 0.0)], 1)
    difference = comparison.row("bits_per_byte").differences[0]
    assert difference.joint is None
    assert difference.interval.units == UNITS
    assert any("do not cover the training seed" in words for words in summarise(comparison).limits)


def test_the_average_by_hand() -> None:
    comparison = build_comparison([made("a", 0, hits=18), made("b", 0, hits=12)], 1)
    row = comparison.row(PRIMARY)
    # (18/30 - 0.2) / 0.8 = 0.5 and (15/30 - 0.25) / 0.75 = 1/3; for b (12/30 - 0.2) / 0.8 = 0.25
    assert row.values[0].value == pytest.approx((0.5 + 1 / 3) / 2)
    assert row.differences[0].interval.value == pytest.approx(0.125)
    # 6 of 30 queries differ, each by 1 / 0.8 / 2: standard error 0.625 sqrt(0.2 * 0.8 / 30)
    half = 1.96 * 0.625 * (0.2 * 0.8 / 30) ** 0.5
    assert row.differences[0].interval.high - row.differences[0].interval.low == pytest.approx(2 * half, rel=0.12)


def test_the_average_takes_the_shots_that_all_have() -> None:
    short, long = made("a", 0, hits=18), made("b", 0, hits=12)
    part = short.part("task/pairs")
    part.measures = [item for item in part.measures if item.x == 1]
    for item in part.measures:
        item.primary = item.unit == "accuracy"
    assert build_comparison([short, long], 1).row(PRIMARY).differences[0].interval.value == pytest.approx(0.125)
    part.measures = []
    comparison = build_comparison([short, long], 1)
    assert comparison.row(PRIMARY).label == "primary average of 1 task"
    assert comparison.notes[0] == "left out of the average, because not every model was asked: pairs"


def test_claims_are_corrected_for_their_number() -> None:
    comparison = build_comparison([made("a", 0, hits=20), made("b", 0, hits=12)], 1)
    assert [(test.task, test.row.key) for test in comparison.family] == [
        ("", "bits_per_byte"),
        ("", PRIMARY),
        ("pairs", "task/pairs/4/accuracy"),
        ("labels", "task/labels/4/accuracy"),
    ]
    tests = {test.task or test.row.key: test for test in comparison.tests(0)}
    # the average rests on the one task that differs, so both have one p value: the first step of four, held at the next
    assert tests["pairs"].p == pytest.approx(tests[PRIMARY].p, rel=0.2)
    assert tests["pairs"].adjusted == pytest.approx(4 * min(tests["pairs"].p, tests[PRIMARY].p), rel=0.2)
    assert (tests["pairs"].verdict, tests["labels"].verdict) == ("better", "not significant")
    assert tests["labels"].adjusted == 1.0
    assert "better than b on 1 (pairs)" in " ".join(summarise(comparison).significant)


def words_of_verdict(text: str) -> list[str]:
    """Return the verdicts in a text; "lower is better" says which way a measure points."""
    plain = re.sub("(lower|higher) is better", "", text.lower())
    return re.findall(r"\b(?:better|worse|differs|significant)\b", plain)


def test_only_the_family_bears_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row differs by ten standard errors; those outside the family are shown, and called nothing."""
    models = [made("a", -0.1, hits=30), made("b", 0.0, hits=1), made("c", 0.1, hits=15)]
    for model, move in zip(models, (0.0, 1.0, 2.0), strict=True):
        gain = measure("primary", "demonstration_gain", BITS + move)
        pairing = measure("primary", "demonstration_gain", BITS + move, variant="pairing")
        context = measure("context", "in_context", BITS + move)
        model.parts.append(Part("more", "", [gain, pairing, context]))
    comparison = build_comparison(models, 1)
    family = [(test.row.key, test.arm) for test in comparison.family]
    keys = ["bits_per_byte", PRIMARY, "demonstration_gain/pairing", "task/pairs/4/accuracy", "task/labels/4/accuracy"]
    assert family == [(key, arm) for arm in (0, 2) for key in keys]
    for row in comparison.rows:
        assert bool(comparison.verdict(row, 0)) == (row.key in keys)
    summary = summarise(comparison)
    print_comparison(comparison, summary, Console(width=300))
    printed = capsys.readouterr().out
    data = report_data(comparison, summary)
    paper, page = render_markdown(comparison, summary), render_page(comparison, summary)
    assert data["family"]["tests"] == len(family) == 10
    assert data["family"]["correction"] == "Holm"
    for text in (printed, paper, page, json.dumps(data["summary"])):
        assert "Declared family of tests: " in text
        assert "for each of 2 models; 10 tests, p values adjusted by Holm over all of them at once" in text
    outside = [
        printed.split("Use of the context")[1].split("Few-shot tasks")[0],
        printed.split("Loss by position")[1].split("Use of the context")[0],
        paper.split("## Use of the context")[1].split("## ")[0],
        paper.split("## Loss by position")[1].split("## ")[0],
        page.split('id="position"')[1].split("</figure>")[1].split("</section>")[0],
        page.split('id="context"')[1].split("</section>")[0],
    ]
    for text in outside:
        assert re.search(r"\d\.\d{3}", text)
        assert not words_of_verdict(text)
        assert not re.search(r"\*\*|\] [+-](?!\d)", text)
    inside = [printed.split("Declared family")[1], paper.split("## Declared family")[1], page.split('id="family"')[1]]
    assert all(len(words_of_verdict(text)) >= 10 for text in inside)


def test_what_may_not_be_compared_says_why() -> None:
    models = [made(name, 0) for name in "abcd"]
    models[0].model.tokenizer = "u"
    models[2].window = 32
    for item in models[3].measures:
        item.items = "others"
    comparison = build_comparison(models, 1)
    accuracy = comparison.row("task/pairs/4/accuracy")
    assert [entry.reason for entry in accuracy.differences] == [OTHER_TOKENIZER, "", OTHER_WINDOW, OTHER_ITEMS]
    text = comparison.row("bits_per_byte")
    assert [entry.reason for entry in text.differences] == ["", "", OTHER_WINDOW, OTHER_ITEMS]
    assert OTHER_WINDOW in " ".join(summarise(comparison).limits)
    assert OTHER_TOKENIZER in render_page(comparison, summarise(comparison))


def test_scores_of_other_seeds_or_texts_are_not_paired_by_the_names_of_their_units() -> None:
    """Positions name documents and episodes are numbered, so that names alone can be the same for other items."""
    models = [made(name, 0) for name in "abc"]
    for item in models:
        for row in item.part("positions").measures:
            row.items = ""
    models[0].protocol["seed"] = 1
    models[1].text_fingerprint = "other"
    comparison = build_comparison(models, 2)
    seeds = f"{OTHER_SEED}: 1 and 0; measure one again"
    for key, reasons in (("task/pairs/4/accuracy", [seeds, "", ""]), ("position/1", [seeds, OTHER_TEXT, ""])):
        assert [entry.reason for entry in comparison.row(key).differences] == reasons
    assert "the same" not in summarise(comparison).compared
    assert "Measured on the same 30 documents" in summarise(build_comparison(models[2:])).compared


def test_windows_of_documents_that_differ_behind_the_sample_are_not_paired() -> None:
    """The sample cuts long documents, so that its fingerprint can be the same where windows come from other text."""
    models = [made(name, 0) for name in "abcd"]
    for item, whole in zip(models, ("one", "other", "", "one"), strict=True):
        item.collection_fingerprint = whole
        for row in item.part("positions").measures:
            row.items = ""
    comparison = build_comparison(models, 3)
    reasons = [entry.reason for entry in comparison.row("position/1").differences]
    assert reasons == ["", OTHER_TEXT, "", ""]  # scores stored without the fingerprint are compared as before
    assert [entry.reason for entry in comparison.row("bits_per_byte").differences] == ["", "", "", ""]


def test_tokens_that_are_rare_in_other_training_text_are_not_paired() -> None:
    """Models measured apart have the same windows, but rare pairs are counted in each one's own training text."""
    models, counts = [made(name, 0) for name in "abc"], [3.0, 2.0, 3.0]
    for item, count in zip(models, counts, strict=True):
        for row in item.part("positions").measures:
            row.section, row.group, row.items, row.first, row.last = "recall", f"rare{row.last}", "", None, None
            row.denominator = [[count] for _ in row.units]
            row.__post_init__()
    comparison = build_comparison(models, 2)
    assert [entry.reason for entry in comparison.row("recall/rare1").differences] == ["", OTHER_ITEMS, ""]


def test_seeds_asked_otherwise_are_not_one_difference() -> None:
    """Each pair alone is asked alike, but the units of one are not those of the other."""
    scores = campaign(2)
    for item in (scores[1], scores[3]):
        item.measure("bits_per_byte").items = "others"
    comparison = build_comparison(scores, 1)
    assert comparison.row("bits_per_byte").differences[0].reason == OTHER_ITEMS
    assert comparison.row("bits_per_byte/a").differences[0].joint is not None


def test_a_forest_names_every_arm_that_it_shows() -> None:
    """Also where an arm is not compared in the first row, which is the average over tasks."""
    models = [made(name, 0) for name in ("first", "second", "third")]
    for item in models[0].part("task/pairs").measures:
        item.items = "others"
    drawn = figures.tested_figure(build_comparison(models, 2))
    assert drawn is not None
    assert re.search(r">\s*first\s*<", drawn)
    assert re.search(r">\s*second\s*<", drawn)


MODELS = {
    "one": [made("a", 0)],
    "one arm": campaign()[:3],
    "two": [made("a", -0.1), made("b", 0)],
    "two arms": campaign(),
    "five": [made(name, 0.1 * n) for n, name in enumerate("abcde")],
    "five arms": [*campaign(2), *(made(f"x{n}", 0.05, seed=s, recipe=f"X{n}") for n in range(3) for s in range(2))],
}
QUICK = ("one", "two arms", "five")


@pytest.mark.parametrize(
    "models", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_page_of_any_number_of_models(models: str, tmp_path: Path) -> None:
    comparison = build_comparison(MODELS[models], 0)
    several = len(comparison.arms) > 1
    text = write_report(comparison, summarise(comparison), tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    # training, positions, two tasks; the two forests need something to differ from
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == page.count("figure") == len({own["aria-label"] for own in drawn}) == 4 + 2 * several
    assert {own["role"] for own in drawn} == {"img"}
    page.check_references()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not re.search(r"#0[1-4]0\d0", text)
    assert {attributes["class"] for tag, attributes in page.tags if tag == "table"} == {"sortable"}
    assert {attributes["scope"] for tag, attributes in page.tags if tag == "th"} <= {"col", "row"}
    inside = [after for (tag, own), (after, _) in pairwise(page.tags) if tag == "th" and own["scope"] == "col"]
    assert set(inside) == {"button"}  # every column can be sorted by
    for item in comparison.scores:
        assert item.model.fingerprint in text
        assert item.protocol["command"] in text
    assert ("Every training seed" in text) == comparison.seeded
    paper = (tmp_path / "report.md").read_text(encoding="utf-8")
    for line in paper.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    assert "## Primary average" in paper
    assert all(name in paper for name in comparison.names)


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_on_both_grounds() -> None:
    text = render_page(made := build_comparison(MODELS["two"], 1), summarise(made))
    parts = text.split("prefers-color-scheme: dark")[:2]
    least = {f"series-{n}": 3.0 for n in range(1, 9)} | {"ink": 7.0, "muted": 4.5, "better": 4.5, "worse": 4.5}
    for palette in (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in parts):
        for name, contrast in least.items():
            low, high = sorted((luminance(palette[name]), luminance(palette["card"])))
            assert (high + 0.05) / (low + 0.05) >= contrast, name
        # without red or green cones blue against yellow is what is left of colour (Vienot et al. 1999)
        blues = [int(palette[f"series-{n}"][5:7], 16) - int(palette[f"series-{n}"][1:3], 16) for n in (1, 2)]
        assert blues[0] > 60
        assert blues[1] < -60


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="there is no Chromium")
@pytest.mark.parametrize("scheme", [0, 1])
def test_a_browser_shows_sorts_and_prints_the_page(tmp_path: Path, scheme: int) -> None:
    """Run the page's script in a browser: press a heading twice, read the rows; draw it dark (0) and light (1)."""
    text = render_page(made := build_comparison(campaign(), 1), summarise(made))
    press = "<script>const b = document.querySelectorAll('#text th button'); b[1].click(); b[1].click();</script>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{press}</body>"), encoding="utf-8")
    program = shutil.which("chromium") or shutil.which("google-chrome") or ""
    plain = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    plain += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,900"]

    def browse(*options: str) -> str:
        run = subprocess.run([*plain, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return run.stdout

    shown = browse("--dump-dom")
    table = shown[shown.index('id="text"') :]
    assert table.index('aria-sort="descending"') < table.index("</table>")
    browse(f"--screenshot={tmp_path / 'page.png'}")
    browse(f"--print-to-pdf={tmp_path / 'page.pdf'}")
    image = pytest.importorskip("PIL.Image", reason="comes with matplotlib").open(tmp_path / "page.png").convert("L")
    ground = image.getpixel((2, 2))
    assert ground < 60 if scheme == 0 else ground > 200
    assert len(set(image.getdata() if not hasattr(image, "get_flattened_data") else image.get_flattened_data())) > 20
    assert (tmp_path / "page.pdf").stat().st_size > 20_000

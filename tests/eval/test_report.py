"""The whole way: models in folders, scores, comparison, page."""

from __future__ import annotations

import copy
import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page
from made_scores import made
from markdown_it import MarkdownIt
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mesa_eval.comparison.arms import Arm, find_baseline
from mesa_eval.comparison.rows import OTHER_TOKENIZER, build_comparison
from mesa_eval.evaluate import compare, evaluate
from mesa_eval.measures.plan import Request, make_plan
from mesa_eval.measures.scores import Note, Scores
from mesa_eval.reading.documents import stable_number
from mesa_eval.reading.model_source import ModelSource
from mesa_eval.report.files import write_report
from mesa_eval.report.markdown_report import render_markdown
from mesa_eval.report.page import render_page
from mesa_eval.report.tables import print_comparison, state_words
from mesa_eval.report.wording import number, summarise
from mesa_eval.uncertainty.bootstrap import resample
from mesalm.cli import main

MADE: list[dict] = []


@pytest.fixture
def scores(save_model, make, text_file: str, pair_file: str, class_file: str) -> list[Scores]:
    """Score two twins and a model with another tokenizer, once for all tests; each test gets its own copy."""
    if not MADE:
        MADE.extend(item.to_dict() for item in _scored(save_model, make, text_file, pair_file, class_file))
    return [Scores.from_dict(data) for data in copy.deepcopy(MADE)]


def _scored(save_model, make, text_file: str, pair_file: str, class_file: str) -> list[Scores]:
    other = make.tokenizer(merges_from="bale bile " * 40, size=264)
    models = [save_model("first", 1), save_model("second", 2), save_model("third", 3, other, length=96)]
    return evaluate(
        models, "quick", texts=[text_file], tasks=["copying", pair_file, class_file], quiet=True, device="cpu"
    )


def test_scores_survive_json(scores: list[Scores], tmp_path: Path) -> None:
    for item in scores:
        path = item.write(tmp_path / "scores")
        assert path.name == f"{item.model.name}.json"
        assert Scores.read(path) == item
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [
        "first.json",
        "second.json",
        "third.json",
    ]
    with pytest.raises(ValueError, match="format"):
        Scores.from_dict({**scores[0].to_dict(), "format": 99})


def test_twins_get_the_same_items(scores: list[Scores]) -> None:
    first, second, third = scores
    assert first.window == second.window == 64
    assert third.window == 96
    assert first.text_fingerprint == second.text_fingerprint == third.text_fingerprint
    assert first.collection_fingerprint == third.collection_fingerprint != ""
    one, two, three = ({measure.key: measure for measure in item.measures} for item in scores)
    assert one["bits_per_byte"].units == three["bits_per_byte"].units
    assert one["position/1"].units == two["position/1"].units
    answers = [[measure.items for measure in table.values() if measure.resampled == "query"] for table in (one, two)]
    assert answers[0] == answers[1]
    assert all(items for items in answers[0])
    assert [t.cut for t in first.tasks] == [t.cut for t in second.tasks]
    assert first.model.state_grows
    for item in scores:
        documents = item.part("text").raw["documents"]
        total = sum(document["tokens"] for document in documents)
        assert total == sum(document["bytes"] for document in documents) or item is third
        assert item.text_bytes == sum(document["bytes"] for document in documents)


def test_differences_are_paired_by_document(scores: list[Scores]) -> None:
    comparison = build_comparison(scores, baseline=0)
    row = comparison.row("bits_per_byte")
    import numpy as np

    documents = [item.part("text").raw["documents"] for item in scores]
    bits = [np.array([[d["nats"] / math.log(2)] for d in own]) for own in documents]
    sizes = [np.array([[float(d["bytes"])] for d in own]) for own in documents]
    draws = (0, stable_number("text"))
    expected = (resample(bits[1], sizes[1], seed=draws) - resample(bits[0], sizes[0], seed=draws)).interval()
    found = row.differences[1].interval
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert row.differences[0].interval is None
    assert row.values[1].value - row.values[0].value == pytest.approx(expected.value)
    domains = [r.label for r in comparison.section("text")][1:3]
    assert [label.split()[0] for label in domains] == ["even", "odd"]


def test_other_tokenizers_compare_in_bits_per_byte_only(scores: list[Scores]) -> None:
    comparison = build_comparison(scores, baseline=0)
    for row in comparison.rows:
        difference = row.differences[2]
        if "bits per" in row.unit:
            assert difference.interval is not None or difference.reason == "not measured"
        elif row.values[0] is not None and row.values[2] is not None:
            assert difference.interval is None
            assert difference.reason == OTHER_TOKENIZER
    assert comparison.row("bits_per_byte").differences[2].interval is not None


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte(
    save_model, text_file: str, pair_file: str, tmp_path: Path, capsys
) -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "the": 2, "of": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", bos_token="<s>")
    models_ = [save_model("whole", 1), save_model("lossy", 2, lossy)]
    out = tmp_path / "out"
    assert main(["compare", *models_, "--text", text_file, "--task", pair_file, "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    data = json.loads((out / "report.json").read_text())
    whole, lost = (Scores.from_dict(entry) for entry in data["scores"])
    assert {measure.key for measure in whole.measures} > {"bits_per_byte", "perplexity"}
    keys = {measure.key for measure in lost.measures}
    assert "perplexity" in keys
    assert any(key.endswith("/accuracy") for key in keys)
    assert not [key for key in keys if key.startswith("bits_per_byte") or key.endswith("/answer")]
    for words in ("text: no bits per byte: ", "documents change when encoded and decoded (lossy)"):
        assert words in printed
        assert any(words in note for note in data["notes"])
        assert words in (out / "report.md").read_text()
        assert words in (out / "report.html").read_text()
    assert any("no likelihood of answers" in note for note in data["notes"])


def test_a_perplexity_beyond_floating_point_is_left_out(scores: list[Scores], tmp_path: Path) -> None:
    """That of a diverged model: a thousand nats per token. Everything else is reported."""
    diverged, other = scores[:2]
    rows = len(build_comparison([diverged, other], draws=20).rows)
    perplexity = diverged.measure("perplexity")
    assert perplexity is not None
    perplexity.numerator = [[1000.0 * tokens] for (tokens,) in perplexity.denominator]
    comparison = build_comparison([diverged, other], draws=20)
    row = comparison.row("perplexity")
    assert row is not None
    assert (row.values[0], row.differences[1].reason, len(comparison.rows)) == (None, "not measured", rows)
    assert any(note.startswith(f"perplexity of {diverged.model.name} left out") for note in comparison.notes)
    write_report(comparison, summarise(comparison), tmp_path)


def test_a_model_against_itself_differs_by_nothing(scores: list[Scores]) -> None:
    comparison = build_comparison([scores[0], scores[0]], baseline=1)
    for row in comparison.rows:
        interval = row.differences[0].interval
        assert interval is not None
        assert (interval.value, interval.excludes_zero) == (0.0, False)
    sentences = summarise(comparison).sentences
    assert not summarise(comparison).significant
    assert all("no significant difference" in sentence.lower() for sentence in sentences)


def test_the_summary_says_lower_and_better_only_when_the_interval_does(scores: list[Scores]) -> None:
    better = Scores.from_dict(scores[0].to_dict())
    measure = better.measure("bits_per_byte")
    measure.numerator = [[0.9 * row[0]] for row in measure.numerator]
    better.model.name = "trained"
    comparison = build_comparison([better, scores[0]], baseline=1)
    assert summarise(comparison).significant[0].startswith("trained is lower than first by ")
    assert "better" in summarise(comparison).significant[0]
    reverse = build_comparison([better, scores[0]], baseline=0)
    assert summarise(reverse).significant[0].startswith("first is higher than trained by ")
    assert "worse" in summarise(reverse).significant[0]
    row = comparison.row("bits_per_byte")
    size = number(abs(row.differences[0].interval.value), 4)
    assert f" by {size} [" in summarise(comparison).significant[0]
    assert (number(-0.00001, 3), number(-2.5, 1), number(2.5, 1, signed=True)) == ("0.000", "\u22122.5", "+2.5")


def test_a_state_is_told_with_the_text_it_holds() -> None:
    assert state_words(262144, True, 256) == ("262,144", "at 256 tokens, growing")
    assert state_words(35840, False, 256) == ("35,840", "at any length")
    assert state_words(None, None, 256) == ("unknown", "")


def test_the_page_is_whole_and_stands_alone(scores: list[Scores], tmp_path: Path) -> None:
    scores[0].model.training = {"valid": [[1e6, 3.0], [2e6, 2.5]]}
    comparison = build_comparison(scores, baseline=1)
    path = write_report(comparison, summarise(comparison), tmp_path)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    # training, domains, positions, all tasks, and one for each of two tasks; of the third, one number of shots fits
    assert page.count("svg") == page.count("figure") == 6
    assert page.count("img") == page.count("link") == 0
    assert page.count("script") == 1
    page.check_references()
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert all(marker not in html for marker in ("#0101", "#0202", "#0303", "#0400"))
    assert "var(--series-3)" in html
    for words in ("Null", "Parameters", "95 %", scores[0].model.fingerprint, OTHER_TOKENIZER):
        assert words in page.text
    # the lead, the summary, the windows, and how it was measured
    assert page.text.count("24 documents (effective number 24.0)") >= 4
    data = json.loads((tmp_path / "report.json").read_text())
    assert [model["model"]["name"] for model in data["scores"]] == ["first", "second", "third"]
    assert [Scores.from_dict(item) for item in data["scores"]] == scores
    assert data["baseline"] == "second"
    assert {"seed", "command", "name"} <= set(data["scores"][0]["protocol"])
    assert len(data["rows"]) == len(comparison.rows)


def test_names_are_text_in_the_report(scores: list[Scores], capsys) -> None:
    """Names with marks of HTML, Markdown and the terminal stand in every output as they are."""
    odd = ["<b>a</b>|`x`", "[/b](http://x) **y**"]
    named = [copy.deepcopy(entry) for entry in scores[:2]]
    for entry, name in zip(named, odd, strict=True):
        entry.model.name = entry.model.argument = name
        entry.notes = [Note(f"a note on {name}")]
        for part in entry.parts:
            for measure in part.measures:
                measure.label += " <i>|"
    comparison = build_comparison(named)
    page = MarkdownIt("commonmark").enable("table").render(render_markdown(comparison, summarise(comparison)))
    assert not re.findall("<(?:b|i|a|em|strong|img)[ >]", re.sub("<strong>[+\u2212]?[0-9][^<]*</strong>", "", page))
    columns = {row.count("</td>") + row.count("</th>") for row in page.split("<table>")[-1].split("</tr>")[:-1]}
    assert columns == {5}
    for name in odd:
        assert html.escape(name) in page
    print_comparison(comparison, summarise(comparison), Console(width=400))
    printed = capsys.readouterr().out
    assert all(name in printed for name in odd)
    print_comparison(comparison, summarise(comparison), Console(width=80))
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out  # two names may begin alike


def test_a_narrow_terminal_shows_every_difference(capsys) -> None:
    comparison = build_comparison([made(f"softmax-{name}", 0.1 * place) for place, name in enumerate("abcd")], 3)
    print_comparison(comparison, summarise(comparison), Console(width=80))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    cells = " ".join(printed.replace("\u2502", " ").split())
    for row in comparison.rows:
        for difference in row.differences[:3]:
            assert number(difference.interval.low, row.digits, signed=True) in cells, (row.key, difference)
    for heading in ("measure", "model", "value", "less softmax-d"):
        assert re.search(rf"\u2503 +{heading} +\u2503", printed), heading


def test_compare_writes_everything(save_model, text_file: str, tmp_path: Path, capsys) -> None:
    models = [save_model("one", 1), save_model("two", 2)]
    path = compare(
        models, texts=[text_file], tasks=["case_change"], out=tmp_path / "out", device="cpu", baseline="first"
    )
    assert path == tmp_path / "out" / "report.html"
    written = {str(item.relative_to(tmp_path / "out")) for item in (tmp_path / "out").rglob("*.*")}
    written = {name for name in written if not name.startswith("scores/parts/")}
    assert written == {"report.html", "report.json", "report.md", "scores/one.json", "scores/two.json"}
    printed = capsys.readouterr()
    assert "bits per byte" in printed.out
    assert "two less one" in printed.out.replace("\n", " ")
    assert "tokens read" in printed.err
    rebuilt = build_comparison([Scores.read(tmp_path / "out" / "scores" / f"{n}.json") for n in ("one", "two")])
    assert rebuilt.row("bits_per_byte") is not None


def test_a_short_text_is_measured_as_far_as_it_goes(save_model, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A few words only.")
    (item,) = evaluate([save_model("one", 1)], texts=[str(tmp_path / "short.txt")], tasks=["none"], quiet=True)
    assert item.measure("position/1") is None
    assert any("no document has 65 tokens" in note.text for note in item.part("positions").notes)
    comparison = build_comparison([item], differences=False)
    assert comparison.row("bits_per_byte").values[0].low is None
    assert "<svg" not in render_page(comparison, summarise(comparison))


def test_a_baseline_is_named_by_arm_run_or_place() -> None:
    arms = [Arm("a", (0, 2), (0, 1)), Arm("b", (1,), (None,))]
    known = [ModelSource(f"x/{name}", name, "") for name in ("a-s0", "b", "a-s1")]
    with pytest.raises(ValueError, match="baseline"):
        find_baseline(arms, known, "c")
    keys = (None, "first", "b", "a", "a-s1", "x/a-s0")
    assert [find_baseline(arms, known, key) for key in keys] == [1, 0, 1, 0, 0, 0]


def test_names_too_long_for_a_folder_are_told_before_anything_is_measured(save_model, text_file: str) -> None:
    model = save_model("a-model-with-a-name-of-many-words", 1)
    with pytest.raises(ValueError, match="the names of 9 arms are too long for a folder; name one with --out"):
        compare([model] * 9, texts=[text_file], tasks=["none"], quiet=True, device="cpu")


def test_models_of_one_name_are_told_apart(save_model, text_file: str, tmp_path: Path) -> None:
    one = save_model("one", 1)
    plan = make_plan(Request(models=[one, one], texts=[text_file], tasks=["none"]))
    assert [source.name for source in plan.sources] == ["one", "one-2"]
    scores = evaluate([one, one], texts=[text_file], tasks=["none"], out=tmp_path / "out", quiet=True, device="cpu")
    assert [item.model.name for item in scores] == ["one", "one-2"]
    assert {path.name for path in (tmp_path / "out/scores").glob("*.json")} == {"one.json", "one-2.json"}


def test_a_report_on_one_task_opens_with_its_figure(scores: list[Scores]) -> None:
    kept = []
    for item in scores[:2]:
        first = next(part for part in item.parts if part.task is not None and part.measures)
        kept.append(replace(item, parts=[part for part in item.parts if part.task is None or part is first]))
    made = [build_comparison(chosen, baseline=1) for chosen in (scores[:2], kept)]
    several, one = (render_page(comparison, summarise(comparison)) for comparison in made)
    assert several.index("by number of shots") > several.index('id="tasks"')
    assert one.count("by number of shots") == 1
    assert one.index("by number of shots") < one.index('id="models"')


def test_the_table_of_models_keeps_names_whole(capsys) -> None:
    scores = [made("context-mesa-long", 0.0), made("context-softmax", 0.1)]
    for found in (build_comparison(scores), build_comparison(scores, differences=False)):
        print_comparison(found, summarise(found), Console(width=80))
        printed = capsys.readouterr().out
        head = printed.split("\N{BOX DRAWINGS LIGHT UP AND RIGHT}")[0]
        for name in ("context-mesa-long", "context-softmax", "parameters", "tokens trained", "seconds trained"):
            assert name in head, name
        assert "less" not in head
        assert ("difference at the most" in printed) == bool(found.compared)

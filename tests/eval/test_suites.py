"""A version of a suite stays what it is: its sizes, and every token that it makes a model read."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesa_eval.comparison.record import Difference
from mesa_eval.comparison.rows import build_comparison
from mesa_eval.evaluate import evaluate
from mesa_eval.measures.plan import Request, make_plan
from mesa_eval.measures.scores import Scores
from mesa_eval.measures.suites import SUITE_NAMES, SUITES, find_suite
from mesa_eval.measures.token_count import TokenCounter, count_parts
from mesa_eval.reading.batches import Batch
from mesa_eval.reading.reader import TokenScores
from mesalm.cli import main
from mesalm.hub.open_model import open_tokenizer

FROZEN = Path(__file__).with_name("frozen_suites.json")
ASKED = (
    *("copying", "key_value_recall", "case_change", "phonebook", "word_labels", "new_labels", "letter_labels"),
    *("noisy_labels", "attribute_rules", "linear_rules"),
)
"""The built-in tasks of the first versions; later ones add nothing to what those ask."""
WORDS = [f"{a}{b}{c}e" for a in "BCDFGlmnprst" for b in "aiou" for c in "klt"]


class Recorder(TokenCounter):
    """Read nothing and digest every token that is asked for."""

    def score_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], firsts: Sequence[int], what: str
    ) -> dict[int, TokenScores]:
        self.note([list(row) for row in rows], list(firsts))
        return super().score_batches(batches, rows, firsts, what)

    def continue_batches(
        self, batches: Sequence[Batch], rows: Sequence[Sequence[int]], most: Sequence[int], stop: str, what: str
    ) -> dict[int, list[int]]:
        self.note([list(row) for row in rows], [*most, stop])
        return super().continue_batches(batches, rows, most, stop, what)

    digest: object = None

    def note(self, *asked: object) -> None:
        self.digest = self.digest or hashlib.sha256()
        self.digest.update(json.dumps(asked).encode())


def asked_tokens(version: str, save_model, folder: Path) -> str:
    """Return the sha256 of all that a suite asks of a small text and two small files."""
    texts = [" ".join(WORDS[(n * 7 + 3 * m + m // 144) % 144] for m in range(300 + 40 * n)) for n in range(12)]
    rows = [{"id": str(n), "domain": "odd" if n % 2 else "even", "text": text} for n, text in enumerate(texts)]
    pairs = [{"input": f"up {n}", "output": f"down {n % 17}", "split": "eval" if n % 3 else "pool"} for n in range(150)]
    moods = [{**pair, "output": "sad" if n % 5 else "glad"} for n, pair in enumerate(pairs)]
    for name, lines in (("text", rows), ("pairs", pairs), ("moods", moods)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "moods.labels.json").write_text('["glad", "sad"]')
    tasks = [*ASKED, *(str(folder / f"{name}.jsonl") for name in ("pairs", "moods"))]
    model = save_model("model", 1, length=256)
    plan = make_plan(Request(models=[model], suite=version, texts=[str(folder / "text.jsonl")], tasks=tasks))
    tokenizer = open_tokenizer(model)
    recorder = Recorder(tokenizer, "none", len(tokenizer), 8192, quiet=True)
    asked = count_parts(recorder, plan, plan.windows[0], True)
    assert sum(part.tokens > 0 for part in asked) >= 8
    return recorder.digest.hexdigest()


def check(version: str, what: str, found: str) -> None:
    frozen = json.loads(FROZEN.read_text())
    assert set(frozen) == set(SUITES), (
        f"{FROZEN.name} must hold every version of mesa_eval/measures/suites.py and no other"
    )
    assert found == frozen[version][what], (
        f"{version}: its {what} are others than before. If scores of it may exist, leave it as it was and add a version"
        " with the next number to mesa_eval/measures/suites.py, with its own rule of choice where that has changed."
        f' Only for a version that was never released write "{what}": "{found}" into {FROZEN.name}'
    )


@pytest.mark.parametrize("version", SUITES)
def test_a_version_keeps_its_sizes(version: str) -> None:
    record = json.dumps(SUITES[version].record(), sort_keys=True)
    check(version, "record", hashlib.sha256(record.encode()).hexdigest())


@pytest.mark.parametrize(
    "version", [name if "quick" in name else pytest.param(name, marks=pytest.mark.slow) for name in SUITES]
)
def test_a_version_asks_the_same(version: str, save_model, tmp_path: Path) -> None:
    check(version, "items", asked_tokens(version, save_model, tmp_path))


def test_a_suite_is_its_newest_version() -> None:
    assert set(SUITE_NAMES) == {"quick", "full", "paper"}
    assert find_suite("full-1") is SUITES["full-1"]
    more = {**SUITES, "full-9": SUITES["full-1"], "full-10": SUITES["quick-1"]}
    assert find_suite("full", more) is SUITES["quick-1"]  # number 10 comes after number 9


def test_results_name_the_version(
    save_model, text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out & more"
    arguments = ["compare", save_model("a", 1), save_model("b", 2), "--suite=quick", "--text", text_file]
    arguments += ["--task", "none", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/mesalm", *arguments])
    assert main(arguments) == 0
    data = json.loads((out / "report.json").read_text())
    assert [item["protocol"]["name"] for item in data["scores"]] == ["quick-1", "quick-1"]
    command = data["scores"][0]["protocol"]["command"]
    kept = [word for word in arguments if word != "--suite=quick"]
    assert shlex.split(command) == ["mesalm", *kept, "--suite", "quick-1"]
    assert "&" in str(out)  # which a shell would take for its own
    assert "<em>quick-1</em>" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", arguments[1], "--suite", "quick-7", "--text", text_file]) == 2
    error = capsys.readouterr().err
    assert "--suite 'quick-7': unknown; it must be one of quick, full, paper, or a version: quick-1" in error
    assert error.count("\n") == 1


def test_versions_are_not_compared(save_model, text_file: str) -> None:
    (old,) = evaluate([save_model("a", 1)], texts=[text_file], tasks=["none"], quiet=True, device="cpu")
    new = Scores.from_dict(old.to_dict())
    new.protocol["name"] = "quick-2"
    comparison = build_comparison([old, new], 0)
    reason = "suites differ: quick-2 and quick-1; measure one again"
    assert {row.differences[1] for row in comparison.rows} == {Difference(reason=reason)}
    assert (
        make_plan(Request(models=[save_model("c", 1)], texts=[text_file], tasks=["none"])).record["name"] == "quick-1"
    )

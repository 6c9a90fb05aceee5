"""What is counted beforehand is what a model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mesa_eval.measures.plan import Request, make_plan
from mesa_eval.measures.run import run_plan
from mesa_eval.measures.suites import find_suite
from mesa_eval.measures.token_count import count_tokens
from mesalm.cli import main


def test_the_count_is_what_is_read(save_model, text_file: str, pair_file: str, class_file: str, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text(
        "".join(json.dumps({"text": f"a text of {'x' * n} words"}) + "\n" for n in range(9))
    )
    (tmp_path / "long.txt").write_text(" ".join(f"word{n}" for n in range(200)))  # for windows of 8 x 128 bytes
    texts = [text_file, str(tmp_path / "long.txt")]
    tasks = ["copying", "key_value_recall", pair_file, class_file, str(tmp_path / "words.jsonl")]
    models = [save_model(name, 1, length=128) for name in ("one", "two")]
    how = {"texts": texts, "tasks": tasks, "device": "cpu", "batch_tokens": 500, "quiet": True}
    (counted,) = count_tokens(make_plan(Request(models=models, **how)))
    assert counted.models == ("one", "two")
    (scores,) = run_plan(make_plan(Request(models=models[:1], **how)), None)
    assert [part.name for part in counted.parts] == [part.name for part in scores.parts]
    for part, count in zip(scores.parts, counted.parts, strict=True):
        if count.at_most:
            assert 0 < part.tokens_run < count.tokens
        else:
            assert part.tokens_run == count.tokens > 0
    assert [part.name for part in counted.parts if part.at_most] == ["task/key_value_recall"]
    assert counted.tokens < (find_suite("quick").budget or 0)


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_plan_tells_tokens_seconds_and_memory(
    command: str,
    save_model,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, size in (("COLUMNS", "200"), ("LINES", "50")):  # Rich takes both or, on a dumb terminal, neither
        monkeypatch.setenv(name, size)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    first, second = save_model("one", 1), save_model("two", 2, length=128)
    more = ["--text", text_file, "--task", "copying", "--task", "phonebook"]
    arms = ["--arm", f"both={first},{second}"] if command == "compare" else []
    assert main([command, *([] if arms else [first, second]), *more, *arms, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert set(tmp_path.rglob("*")) - set(before) == {
        path for name in ("one", "two") for path in [tmp_path / name, *(tmp_path / name).iterdir()]
    }
    # one tokenizer, so one window and one table
    assert re.search(r"one, two: tokens read, window 64", shown)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    numbers = [row for row in rows if re.fullmatch(r"[\d,]+", row[1])]
    *parts, total, budget = [int(row[1].replace(",", "")) for row in numbers]
    assert (total, budget) == (sum(parts), 800_000)
    peak = next(row for row in rows if row[0].startswith("peak memory"))
    for model in (2, 3):
        *seconds, whole = [float(row[model]) for row in numbers[:-1]]
        assert all(second >= 0 for second in seconds)
        assert whole == pytest.approx(sum(seconds), abs=0.06 * (len(seconds) + 1))
        assert re.fullmatch(r"[\d,]+ MB", peak[model]), shown
    assert numbers[-1][0] == "budget of quick-1"
    assert "at 4 entries a prompt exceeds 64 tokens" in " ".join(" ".join(row[1] for row in rows).split()), shown


@pytest.mark.slow
def test_the_seconds_are_those_of_a_run(save_model, text_file: str, pair_file: str, class_file: str) -> None:
    """A model of 6 million parameters, so that its arithmetic and not Python's decides; within a factor of 2."""
    tasks = ["copying", "key_value_recall", pair_file, class_file]
    model = save_model("large", 1, length=256, hidden_size=256, num_hidden_layers=6)
    how = {"texts": [text_file], "tasks": tasks, "device": "cpu", "batch_tokens": 2048, "quiet": True}
    plan = make_plan(Request(models=[model, model], **how))
    (count,) = count_tokens(plan, timed=True)
    scores, _ = run_plan(plan, None)
    expected = [count.seconds(0, part) for part in count.parts if not part.at_most]
    took = [part.seconds for part, known in zip(scores.parts, count.parts, strict=True) if not known.at_most]
    assert 0.5 < sum(expected) / sum(took) < 2
    bounded = [
        (count.seconds(0, part), found.seconds)
        for part, found in zip(count.parts, scores.parts, strict=True)
        if part.at_most
    ]
    assert all(bound > 0.5 * seconds for bound, seconds in bounded)
    weights = 4 * scores.model.parameters
    assert all(weights < one.peak_bytes < weights + 500_000_000 for one in count.forecasts)

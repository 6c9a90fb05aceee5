"""What is counted beforehand is what a model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mesa_eval.protocols import PROTOCOLS
from mesa_eval.reading.scoring import Scorer
from mesa_eval.suite import make_plan, run_plan
from mesa_eval.token_count import count_tokens
from mesalm.cli import main


def test_the_count_is_what_is_read(save_model, text_file: str, pair_file: str, class_file: str, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text(
        "".join(json.dumps({"text": f"a text of {'x' * n} words"}) + "\n" for n in range(9))
    )
    (tmp_path / "long.txt").write_text(" ".join(f"word{n}" for n in range(200)))  # for windows of 8 x 128 bytes
    texts = [text_file, str(tmp_path / "long.txt")]
    tasks = ["copying", "key_value_recall", pair_file, class_file, str(tmp_path / "words.jsonl")]
    models = [save_model(name, 1, length=128) for name in ("one", "two")]
    plan = make_plan(models, "quick", texts, "valid", tasks, 0)
    (counted,) = count_tokens(plan, batch_tokens=500, quiet=True)
    assert counted.models == ("one", "two")
    (scores,) = run_plan(make_plan(models[:1], "quick", texts, "valid", tasks, 0), None, "cpu", 500, quiet=True)
    assert [part.name for part in counted.parts] == [part.name for part in scores.parts]
    for part, count in zip(scores.parts, counted.parts, strict=True):
        if count.at_most:
            assert 0 < part.tokens_run < count.tokens
        else:
            assert part.tokens_run == count.tokens > 0
    assert [part.name for part in counted.parts if part.at_most] == ["task/key_value_recall"]
    assert counted.tokens < (PROTOCOLS["quick"].budget or 0)


@pytest.mark.parametrize("door", ["eval", "compare"])
def test_a_plan_runs_no_model(
    door: str,
    save_model,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scorer, "open", lambda *_, **__: pytest.fail("a model was opened"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    first, second = save_model("one", 1), save_model("two", 2, length=128)
    more = ["--text", text_file, "--task", "copying", "--task", "phonebook"]
    arms = ["--arm", f"both={first},{second}"] if door == "compare" else []
    assert main([door, *([] if arms else [first, second]), *more, *arms, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert set(tmp_path.rglob("*")) - set(before) == {
        path for name in ("one", "two") for path in [tmp_path / name, *(tmp_path / name).iterdir()]
    }
    # one tokenizer, so one window and one table
    assert re.search(r"one, two: tokens read, window 64", shown)
    numbers = [int(found.replace(",", "")) for found in re.findall(r"│ +([\d,]+) │", shown)]
    *parts, total, budget = numbers
    assert total == sum(parts)
    assert budget == 800_000
    assert "no prompt fits the window of 64 tokens" in shown

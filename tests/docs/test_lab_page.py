"""docs/lab.md: the file of claims on it is run as it stands, its net trained again when it changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesalm.cli import main

PAGE = (Path(__file__).parents[2] / "docs/lab.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r'^```python title="rotations.py"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def lab(*words: str) -> tuple[int, str]:
        code = main(["lab", *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return lab


def test_the_example_is_run_and_reported(run, tmp_path: Path) -> None:
    assert len(EXAMPLE.splitlines()) <= 40
    Path("rotations.py").write_text(EXAMPLE, encoding="utf-8")
    code, shown = run("run", "rotations.py")
    assert code == 0
    assert "1 angle: reproduced" in shown
    code, shown = run("run", "rotations.py", "angle", "steps=1", "learning_rate=1")
    assert "1 angle: not reproduced" in shown
    assert {path.name for path in Path("reports/lab").iterdir()} == {"angle-small.json", "angle-changed.json"}
    assert run("report", "--claims", "rotations.py")[0] == 0
    assert "1 claim reproduced, 0 not, 0 not run" in Path("reports/lab/claims-small.html").read_text(encoding="utf-8")
    nets = len(list(Path("runs/lab").iterdir()))
    Path("rotations.py").write_text(EXAMPLE.replace("1.0, generator", "0.5, generator"), encoding="utf-8")
    run("run", "rotations.py", "steps=1", "learning_rate=1")
    assert len(list(Path("runs/lab").iterdir())) == nets + 1


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        (EXAMPLE, ["steps=many"], "steps: must be like 300, not 'many'"),
        (EXAMPLE, ["step=3"], "angle: step: unknown key; did you mean 'steps'?"),
        (EXAMPLE, ["--size", "paper"], "angle has no paper size"),
        (EXAMPLE, ["angel"], "did you mean 'angle'?"),
        (EXAMPLE.replace("EXPERIMENTS =", "OTHER ="), [], "has no dictionary EXPERIMENTS"),
        (EXAMPLE.replace('EXPERIMENTS = {"angle"', 'EXPERIMENTS = {"angel"'), [], "angel must be in both"),
        (EXAMPLE.replace("at_least", "atleast"), [], "unknown key; did you mean 'at_least'"),
        ("import no_such_thing", [], "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_a_fault_is_one_line(run, text: str, words: list[str], error: str) -> None:
    Path("rotations.py").write_text(text, encoding="utf-8")
    code, shown = run("run", "rotations.py", *words)
    assert code in (1, 2)
    assert error in shown
    assert shown.count("\n") == 1
    assert not Path("runs").exists()


def test_sizes_of_the_papers_claims_are_changed_the_same_way(run) -> None:
    code, shown = run("run", "dimension-curse", "sizes=[4, 40]", "rows=8")
    assert code == 0
    assert [path.name for path in Path("reports/lab").iterdir()] == ["dimension-curse-changed.json"]
    code, shown = run("run", "one-layer", "stepps=100")
    assert (code, shown.count("\n")) == (2, 1)
    assert "one-layer: stepps: unknown key; did you mean 'steps'?" in shown

"""What a MODEL argument names: one answer for every command, and never a checkpoint by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesalm.runs import RunFiles, RunRecord, complete_checkpoints, resolve


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a finished run with two more models of its own and two checkpoints, one of them torn."""
    files = RunFiles(tmp_path / "demo")
    more = (files.path / "final-4", files.final_average)
    for folder in (files.final, *more, *(files.checkpoints / f"step-{step:08d}" for step in (4, 8))):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (files.checkpoints / "step-00000004" / "state.json").write_text("{}")
    starts = [{"event": "start", "step": step, "prepared": f"/data/{step}"} for step in (0, 4)]
    files.journal.write_text("".join(json.dumps(start) + "\n" for start in starts))
    files.recipe.write_text("data: {sequence_length: 80}\noptim: {learning_rate: 1e-3}\n")
    return files.path


@pytest.mark.parametrize(
    ("inside", "where", "name", "finished"),
    [
        ("", "final", "demo", True),
        ("final", "final", "demo", True),
        ("final-4", "final-4", "demo-final-4", False),
        ("final-average", "final-average", "demo-final-average", False),
        ("checkpoints/step-00000004", "checkpoints/step-00000004", "demo-step-00000004", False),
    ],
)
def test_a_model_of_a_run_knows_its_run(run: Path, inside: str, where: str, name: str, finished: bool) -> None:
    for unfinished in (False, True):
        found = resolve(str(run / inside), unfinished=unfinished)
        assert (found.load_from, found.name) == (str(run / where), name)
        assert found.run is not None
        assert found.run.path == run
        assert (found.finished_run is not None) == finished


def test_only_a_run_that_may_be_unfinished_gives_its_newest_checkpoint(run: Path) -> None:
    (run / "final").rename(run.parent / "elsewhere")
    with pytest.raises(ValueError, match="no final/ yet"):
        resolve(str(run))
    # the newer one is not complete
    assert resolve(str(run), unfinished=True).load_from == str(run / "checkpoints/step-00000004")
    assert [path.name for path in complete_checkpoints(RunFiles(run).checkpoints)] == ["step-00000004"]
    assert resolve(str(run.parent / "elsewhere")).run is None


def test_a_name_on_the_hub_is_not_taken_for_a_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    found = resolve("owner/name")
    assert (found.load_from, found.name, found.run) == ("owner/name", "owner--name", None)


def test_a_link_to_a_run_is_that_run(run: Path) -> None:
    link = run.with_name("latest")
    link.symlink_to(run)
    found = resolve(str(link))
    assert found.load_from == str(link / "final")
    assert found.name == "demo"
    assert found.finished_run is not None


def test_a_run_tells_what_it_was_trained_on(run: Path) -> None:
    record = RunRecord(run)
    assert (record.sequence_length, record.prepared) == (80, Path("/data/4"))
    assert record.settings["optim"]["learning_rate"] == 0.001
    (run / "recipe.yaml").write_text("data: 3\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: was not written by"):
        _ = RunRecord(run).settings
    (run / "recipe.yaml").unlink()
    (run / "journal.jsonl").write_text("")
    assert (RunRecord(run).sequence_length, RunRecord(run).prepared) == (None, None)

"""What a run folder tells and holds to: its data, one process, no leftovers, its length."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesalm.cli import main
from mesalm.data import prepare as prepare_module
from mesalm.data.bpe import train_tokenizer
from mesalm.data.documents import DataError
from mesalm.files import read_sealed, write_sealed
from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.planned import branch
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe
from mesalm.train.run_folder import RunFolder, run_page

Load = Callable[..., Recipe]


def digests(run: Path) -> dict[str, str]:
    """Return a digest of the weights, of the optimiser's state and of the random state at the end of a run."""
    newest = Checkpoints(run / "checkpoints").newest()
    files = [run / "final" / "model.safetensors", newest / "optimiser.pt", newest / "random.pt"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def history(run: Path) -> list[tuple[Any, ...]]:
    """Return the lines of a run's journal without its starts and without times."""
    lines = [line for line in read_journal(run / "journal.jsonl") if line["event"] != "start"]
    return [tuple(line.get(name) for name in ("event", "step", "loss", "learning_rate", "folder")) for line in lines]


def prepared_folder(recipe: Recipe) -> Path:
    lines = read_journal(recipe.folder / "journal.jsonl")
    return Path(next(line["prepared"] for line in lines if line["event"] == "start"))


@pytest.fixture
def own(load: Load, corpus: Path, tmp_path: Path) -> Load:
    """Load the tiny recipe with a copy of the text and a cache that a test may change."""
    shutil.copy(corpus / "text.jsonl", tmp_path / "text.jsonl")

    def make(*overrides: str) -> Recipe:
        return load(f"data.sources.0.files={tmp_path}/text.jsonl", f"data.cache_dir={tmp_path}/cache", *overrides)

    return make


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, which keeps its size and its times."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=times)


@pytest.mark.parametrize("change", ["appended", "new"])
def test_sources_that_changed_after_a_checkpoint_are_refused(
    own: Load, tmp_path: Path, change: str, stopped: Load
) -> None:
    recipe = stopped(own("train.micro_rows=2"), 6)
    source = tmp_path / "text.jsonl"
    content = source.read_bytes()
    line = json.dumps({"id": "new", "text": "the cat sat on red hills"}) + "\n"
    again = recipe
    if change == "new":
        (tmp_path / "more.jsonl").write_text(line)
        again = own("train.micro_rows=2", f"data.sources.0.files=[{source}, {tmp_path}/more.jsonl]")
    else:
        source.write_bytes(content + line.encode())
    cached = sorted(os.listdir(tmp_path / "cache" / "prepared"))
    message = r"more\.jsonl is new" if change == "new" else r"text\.jsonl has changed"
    with pytest.raises(SettingsError, match=f"{message}; restore the data.*--resume never") as caught:
        pretrain(again, quiet=True)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path / "cache" / "prepared")) == cached  # nothing was built to find that out
    source.write_bytes(content)
    run = pretrain(recipe, quiet=True)
    assert digests(run) == digests(pretrain(own("train.micro_rows=2", "name=whole"), quiet=True))


def test_the_same_bytes_in_another_place_are_the_same_data(own: Load, tmp_path: Path, stopped: Load) -> None:
    stopped(own(), 6)
    (tmp_path / "moved").mkdir()
    (tmp_path / "text.jsonl").rename(tmp_path / "moved" / "renamed.jsonl")
    (tmp_path / "cache").rename(tmp_path / "moved" / "cache")
    places = (f"data.sources.0.files={tmp_path}/moved/*.jsonl", f"data.cache_dir={tmp_path}/moved/cache")
    run = pretrain(own(*places), quiet=True)
    assert [line["step"] for line in read_journal(run / "journal.jsonl") if line["event"] == "start"] == [0, 6]
    assert digests(run) == digests(pretrain(own(*places, "name=whole"), quiet=True))

    # a finished run is finished for the same data only, too
    before = (run / "journal.jsonl").read_bytes()
    shutil.copy(tmp_path / "moved" / "renamed.jsonl", tmp_path / "copy.jsonl")
    pretrain(own(f"data.sources.0.files={tmp_path}/copy.jsonl"), quiet=True)
    assert (run / "journal.jsonl").read_bytes() == before
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "copy.jsonl").read_bytes() * 2 + b"\n")
    with pytest.raises(SettingsError, match=r"renamed\.jsonl is missing \(and 1 more\)"):
        pretrain(own(f"data.sources.0.files={tmp_path}/copy.jsonl"), quiet=True)


def test_a_given_tokenizer_is_known_by_what_it_does(own: Load, tmp_path: Path, stopped: Load) -> None:
    for name, text in (("one", "the cat sat on a mat"), ("other", "long tales of ships")):
        train_tokenizer([text] * 9, 280).save_pretrained(tmp_path / name)
    stopped(own(f"data.tokenizer={tmp_path}/one"), 6)
    with pytest.raises(SettingsError, match=r"the tokenizer .*other has changed; restore the data"):
        pretrain(own(f"data.tokenizer={tmp_path}/other"), quiet=True)
    with pytest.raises(SettingsError, match=r"data\.tokenizer is 'given' there and 'train' now"):
        pretrain(own("data.tokenizer=train"), quiet=True)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert pretrain(own(f"data.tokenizer={tmp_path}/moved"), quiet=True)


@pytest.mark.parametrize(
    ("name", "begun"),
    [("rows/train/*.arrow", True), ("rows/valid/*.arrow", True), ("tokenizer/tokenizer.json", False)],
)
def test_damaged_prepared_data_are_named_with_the_way_on(own: Load, begun: bool, name: str, stopped: Load) -> None:
    recipe = stopped(own(), 6) if begun else own()
    if not begun:
        prepare_module.prepare(recipe.data, quiet=True)
    (damaged,) = Path(recipe.data.cache_dir or "").glob(f"prepared/*/{name}")
    flip(damaged)
    with pytest.raises(DataError, match=rf"{damaged.name} is damaged.*; delete ") as caught:
        pretrain(recipe, quiet=True)
    folder = Path(str(caught.value).partition("; delete ")[2].partition(" and prepare again")[0])
    shutil.rmtree(folder)
    whole = pretrain(own("name=whole"), quiet=True)
    assert digests(pretrain(recipe, quiet=True)) == digests(whole)


def test_a_damaged_manifest_is_named(own: Load, stopped: Load) -> None:
    recipe = stopped(own(), 6)
    manifest = prepared_folder(recipe) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes_per_token": ', '"bytes_per_token": 1'))
    with pytest.raises(DataError, match=r"manifest\.json is damaged.*; delete "):
        pretrain(recipe, quiet=True)


def test_rows_that_come_out_otherwise_are_refused(own: Load, stopped: Load) -> None:
    """As with another version of the libraries: the sources are the same, the run had other rows of them."""
    recipe = stopped(own(), 6)
    shutil.rmtree(prepared_folder(recipe))
    checkpoint = Checkpoints(recipe.folder / "checkpoints").newest() / "state.json"
    state = read_sealed(checkpoint)
    state["data"]["rows"]["train"] = state["data"]["rows"]["train"][::-1]
    write_sealed(checkpoint, state)
    with pytest.raises(SettingsError, match="the rows of train have changed, though the sources have not; restore"):
        pretrain(recipe, quiet=True)


@contextmanager
def holder(path: Path) -> Iterator[int]:
    """Give the number of another process that holds a run folder, and kill it at the end."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with RunFolder(path).locked():
            os.write(writing, b".")
            time.sleep(100)
        os._exit(0)
    os.read(reading, 1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_is_one_process_at_a_time(load: Load, resume: Any, stopped: Load) -> None:
    recipe = stopped(load(), 6)
    before = sorted(recipe.folder.parent.rglob("*"))
    journal = (recipe.folder / "journal.jsonl").read_bytes()
    with holder(recipe.folder) as process:
        message = rf"tiny: process {process} on {os.uname().nodename} is training this run; wait for it"
        with pytest.raises(SettingsError, match=message):
            pretrain(recipe, resume=resume, quiet=True)
        pretrain(load("name=other"), quiet=True)
        shutil.rmtree(recipe.folder.with_name("other"))
        recipe.folder.with_name(".other.lock").unlink()
    assert sorted(recipe.folder.parent.rglob("*")) == before
    assert (recipe.folder / "journal.jsonl").read_bytes() == journal
    assert pretrain(recipe, quiet=True)  # the lock of a killed process is none


def test_a_folder_killed_before_its_recipe_was_there_begins(load: Load) -> None:
    recipe = load("train.steps=1")
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "recipe.yaml.partial").touch()
    run = pretrain(recipe, quiet=True)
    files = ["README.md", "checkpoints", "corpus.md", "final", "journal.jsonl", "recipe.yaml"]
    assert sorted(path.name for path in run.iterdir()) == files


def test_what_kills_leave_is_swept_and_written(load: Load, stopped: Load) -> None:
    whole = pretrain(load("name=whole"), quiet=True)
    recipe = stopped(load(), 8)
    checkpoints = recipe.folder / "checkpoints"
    for name in ("step-00000002", "step-00000012.partial", "step-00000004.replaced"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "model.safetensors").touch()
    # killed between the new checkpoint and the deletion of the one before the last, and before the journal's line
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000003")
    state = (checkpoints / "step-00000003" / "state.json").read_text().replace('"step": 4', '"step": 3')
    (checkpoints / "step-00000003" / "state.json").write_text(state)
    (recipe.folder / "final.partial").mkdir()
    (recipe.folder / "final.replaced").mkdir()
    (recipe.folder / "recipe.yaml.partial").touch()
    journal = recipe.folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["checkpoint", "stop"]
    journal.write_text("".join(lines[:-2]))
    run = pretrain(recipe, quiet=True)
    assert digests(run) == digests(whole)
    assert history(run) == history(whole)
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (run, whole)]
    assert names[0] == names[1]


def test_a_checkpoint_counts_as_begun_without_its_journal(load: Load, stopped: Load) -> None:
    recipe = stopped(load(), 6)
    (recipe.folder / "journal.jsonl").unlink()
    with pytest.raises(SettingsError, match=r"optim\.learning_rate is 0\.001 there and 0\.5 now"):
        pretrain(load("optim.learning_rate=0.5"), quiet=True)


def test_a_run_that_has_begun_needs_the_run_it_began_from_no_more(load: Load, tmp_path: Path, stopped: Load) -> None:
    base = pretrain(load("name=base", "train.steps=3"), quiet=True)
    whole = pretrain(load("name=whole", f"init_from={base}"), quiet=True)
    recipe = stopped(load(f"init_from={base}"), 6)
    base.rename(tmp_path / "elsewhere")
    assert digests(pretrain(recipe, quiet=True)) == digests(whole)


STABLE = ("schedule.name=wsd", "schedule.decay_fraction=0.3", "schedule.warmup_steps=2")


def test_a_stable_run_grows_into_the_longer_one(load: Load, capfd: pytest.CaptureFixture[str], stopped: Load) -> None:
    stopped(load(*STABLE, "train.steps=10"), 6)
    run = pretrain(load(*STABLE, "train.steps=15"))
    said = "15 steps instead of 10; so far the learning rate was that of a run of 15 steps"
    assert f"resuming from step-00000006 to {said}" in capfd.readouterr().err
    whole = pretrain(load(*STABLE, "train.steps=15", "name=whole"), quiet=True)
    assert digests(run) == digests(whole)
    rates = [[line[3] for line in history(folder) if line[0] == "step"] for folder in (run, whole)]
    assert rates[0] == rates[1]


def test_a_finished_run_grows_and_keeps_its_first_model(
    own: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flat = ("schedule.name=constant", "schedule.warmup_steps=2")
    first = pretrain(own(*flat, "train.steps=6"), quiet=True)
    source = tmp_path / "text.jsonl"
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2].rpartition(b"\n")[0])
    with pytest.raises(SettingsError, match=r"text\.jsonl has changed"):
        pretrain(own(*flat, "train.steps=10"), quiet=True)
    assert (first / "final").is_dir()  # what is refused changes nothing
    source.write_bytes(content)
    model = (first / "final" / "model.safetensors").read_bytes()
    run = pretrain(own(*flat, "train.tokens=1280"))
    assert "10 steps instead of 6, the model finished at step 6 is now in final-6" in capfd.readouterr().err
    assert (run / "final-6" / "model.safetensors").read_bytes() == model
    assert digests(run) == digests(pretrain(own(*flat, "train.steps=10", "name=whole"), quiet=True))
    assert [line[1] for line in history(run) if line[0] == "end"] == [10]
    assert pretrain(own(*flat, "train.steps=10")) == run
    assert "this run is finished; add --resume never to train it again" in capfd.readouterr().err


def test_a_sweep_of_leftovers_spares_what_a_user_keeps(load: Load) -> None:
    run = pretrain(load("train.steps=1"), quiet=True)
    kept = ["recipe.yaml.bak", ".recipe.yaml.swp", ".README.md.swp"]
    left = ["recipe.yaml.partial", ".recipe.yaml.a1b2c3_4", ".README.md.a1b2c3_4"]
    for name in kept + left:
        (run / name).touch()
    pretrain(load("train.steps=1"), quiet=True)
    assert {*kept, *left} & {path.name for path in run.iterdir()} == set(kept)


def test_the_commands_of_the_page_hold_in_a_folder_with_a_space(load: Load) -> None:
    recipe = load("output_dir=my runs")
    commands = [line for line in run_page(recipe, recipe.folder).splitlines() if line.startswith("    mesalm ")]
    assert len(commands) == 6
    assert all(shlex.split(line)[2].startswith("my runs/tiny") for line in commands)


def test_a_rate_that_jumps_is_told(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    pretrain(load("train.steps=6"), quiet=True)
    run = pretrain(load("train.steps=12"))
    rates = {line[1]: line[3] for line in history(run) if line[0] == "step"}
    assert rates[7] > 2 * rates[6]
    said = f"the learning rate goes from {rates[6]:.3g} at step 6 to {rates[7]:.3g}, because cosine now spans 12 steps"
    assert said in capfd.readouterr().err


def test_a_length_below_what_is_done_is_refused(load: Load, stopped: Load) -> None:
    recipe = stopped(load(), 6)
    with pytest.raises(SettingsError, match=r"train\.steps: 5 steps are fewer than the 6 that .*tiny has made; give"):
        pretrain(load("train.steps=5"), quiet=True)
    with pytest.raises(SettingsError, match=r"train\.tokens: 4 steps are fewer"):
        pretrain(load("train.tokens=512"), quiet=True)
    assert pretrain(load("train.steps=6"), quiet=True)
    shutil.rmtree(recipe.folder / "checkpoints")
    with pytest.raises(SettingsError, match=r"finished and has no checkpoint to resume from; .*init_from="):
        pretrain(load("train.steps=9"), quiet=True)
    assert pretrain(load("train.steps=6"), quiet=True)


TRUNK = ("schedule.name=wsd", "schedule.decay_fraction=0.3", "checkpoint.keep=9", "train.steps=20")


@pytest.fixture
def trunk(load: Load, stopped: Load) -> Path:
    """A wsd run of 20 steps, stopped after its tenth; its warm-up is a fraction of its length."""
    return stopped(load(*TRUNK, "name=trunk", "schedule.warmup_fraction=0.1"), 10).folder


def test_a_branch_is_the_undisturbed_run_whose_decay_begins_there(
    load: Load, trunk: Path, recipe_file: Path, stopped: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    planned = branch(load(*TRUNK, "schedule.warmup_fraction=0.1", "schedule.decay_steps=5"), f"{trunk}/step-8")
    stopped(planned, 11)
    words = [*TRUNK, "schedule.warmup_fraction=0.1", "schedule.decay_steps=5", "arms={}"]
    shutil.rmtree(trunk / "checkpoints")  # a branch that has a checkpoint of its own needs no other
    assert main(["train", str(recipe_file), "--branch", f"{trunk}/step-8", *words]) == 0
    fixed = ("schedule.warmup_steps=2", "schedule.decay_steps=5", "train.steps=13", "name=whole")
    whole = pretrain(load(*TRUNK, *fixed), quiet=True)
    run = planned.folder
    assert run.name == "tiny-branch-8"
    assert digests(run) == digests(whole)
    lines = [line for line in history(whole) if line[1] > 8 and line[0] in ("step", "valid", "end")]
    assert [line for line in history(run) if line[0] in ("step", "valid", "end")] == lines
    assert next(line[4] for line in history(run) if line[0] == "checkpoint") == "step-00000011"
    rates = [line[3] for line in lines if line[0] == "step"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1 * planned.optim.learning_rate)
    # a plan tells the time of the steps that are left, to the run from its own checkpoint and to one that begins
    assert " for the last 2 steps at " in capfd.readouterr().err
    assert main(["train", str(recipe_file), "--plan", "--branch", f"{trunk}/step-8", *words]) == 0
    assert " for the last 5 steps at " in capfd.readouterr().out


def test_the_journal_names_the_origin(load: Load, trunk: Path) -> None:
    run = pretrain(branch(load(*TRUNK, "schedule.warmup_steps=2"), f"{trunk}/checkpoints/step-00000008"), quiet=True)
    first = (run / "journal.jsonl").read_text().splitlines()[0]
    assert f'"branch_from": "{trunk}/checkpoints/step-00000008"' in first
    assert '"step": 8' in first
    assert len([line for line in history(run) if line[0] == "step"]) == 6  # 0.3 of the trunk's 20


@pytest.mark.parametrize(
    ("changes", "at", "said"),
    [
        (
            (),
            "trunk/step-7",
            r"branch_from: there is no checkpoint .*step-00000007; choose from step-00000004, step-00",
        ),
        ((), "trunk", "is not a checkpoint; give RUN/step-N"),
        ((), "other/step-8", "other"),
        (("schedule.name=cosine",), "trunk/step-8", "cosine has no decay of its own; a branch needs wsd"),
        (("schedule.decay_steps=0",), "trunk/step-8", "at least 1 step of decay"),
        (("optim.weight_decay=0.2",), "trunk/step-8", "optim.weight_decay is 0.1 in .* and 0.2 now"),
        (("optim.learning_rate=1",), "trunk/step-8", "optim.learning_rate is 0.001 in"),
    ],
)
def test_what_cannot_be_a_branch_is_refused(
    load: Load, trunk: Path, changes: tuple[str, ...], at: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        pretrain(branch(load(*TRUNK, "schedule.warmup_fraction=0.1", *changes), str(trunk.parent / at)), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (trunk.parent / "tiny-branch-8").exists()


def test_a_run_in_its_decay_is_not_left(load: Load) -> None:
    run = pretrain(load(*TRUNK, "train.steps=8"), quiet=True)
    with pytest.raises(SettingsError, match="agrees with the branch for 6 steps only"):
        branch(load(*TRUNK), f"{run}/step-8")
    assert branch(load(*TRUNK), f"{run}/step-4").steps == 6

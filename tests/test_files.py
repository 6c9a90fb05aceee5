"""Files appear whole, and a full disk is named with its file, whichever library met it."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mesalm.cli import main
from mesalm.files import described, whole_folder, write_text, writing
from mesalm.hub.new_folder import new_folder
from mesalm.journal import Journal, read_journal
from mesalm.locks import locked
from mesalm.train.checkpoint import Checkpoints


@contextmanager
def full_after(count: int) -> Iterator[None]:
    """Let no file grow beyond a number of bytes, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def trained(size: int = 64) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(size, size)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, size)).sum().backward()
    optimiser.step()
    return model, optimiser


# the weights take 16.7 kB, the optimiser's state 35 kB, the random state more than the limits let through before
@pytest.mark.parametrize("room", [1_000, 20_000, 36_000])
def test_a_checkpoint_on_a_full_disk_leaves_the_earlier_one(tmp_path: Path, room: int) -> None:
    model, optimiser = trained()
    checkpoints = Checkpoints(tmp_path, keep=1)
    numbers = torch.arange(20_000)
    checkpoints.save(1, model, optimiser, [{"torch": numbers}], {})
    with full_after(room), pytest.raises(OSError, match="File too large") as caught:
        checkpoints.save(2, model, optimiser, [{"torch": numbers}], {})
    assert caught.value.filename == str(tmp_path / "step-00000002")
    assert "\n" not in described(caught.value)
    assert "free some space" in described(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoints.read_state(tmp_path / "step-00000001")
    checkpoints.save(2, model, optimiser, [{"torch": numbers}], {})


def test_a_journal_on_a_full_disk_is_named_and_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def write() -> None:
        with Journal(path) as journal:
            journal.write("step", step=1)
            journal.write("step", step=2, note="x" * 100)

    with full_after(100), pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.filename == str(path)
    with Journal(path) as journal:
        journal.write("step", step=3)
    assert [line["step"] for line in read_journal(path)] == [1, 3]


def test_saved_weights_can_be_read_by_those_who_may_read_a_new_file(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").touch()
    (outside := tmp_path / "outside").touch(mode=0o600)
    for folder in (whole_folder(tmp_path / "run"), new_folder(tmp_path / "published", "publish")):
        with folder as staged:
            (staged / "average").mkdir()
            save_file({"weight": torch.ones(1)}, staged / "average/model.safetensors")
            (staged / "link").symlink_to(outside)
    write_text(tmp_path / "recipe.yaml", "")
    files = [*tmp_path.rglob("*.safetensors"), tmp_path / "recipe.yaml"]
    assert [file.stat().st_mode for file in files] == [plain.stat().st_mode] * 3
    assert outside.stat().st_mode & 0o777 == 0o600


def tokenizer_save(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({str(number): number for number in range(2_000)}, unk_token="0")).save(str(path))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file({"x": torch.zeros(5_000)}, path),
        tokenizer_save,
        lambda path: path.write_text("x" * 5_000),
        lambda path: write_text(path, "x" * 5_000),
    ],
)
def test_a_full_disk_names_the_file(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    path = tmp_path / "file"
    with full_after(1_000), pytest.raises(OSError, match="File too large") as caught, writing(path, path):
        write(path)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "text"
    write_text(path, "old")
    with full_after(1_000), pytest.raises(OSError, match="File too large"):
        write_text(path, "n" * 5_000)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [path.name for path in path.parent.iterdir()] == ["text"]


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path / "x", tmp_path / "x"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("place", ["FILE", "FILE/runs", "/proc/x"])
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "FILE").write_text("kept")
    place = place.replace("FILE", str(tmp_path / "FILE"))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("name: tiny\ntrain: {steps: 1, device: cpu}\n")
    assert main(["train", str(recipe), f"output_dir={place}"]) == 2
    plan, error = capsys.readouterr().err.splitlines()
    assert plan.startswith("to train: ")
    assert place.removesuffix("/runs") in error
    assert (tmp_path / "FILE").read_text() == "kept"


def test_a_copy_and_a_lock_that_find_no_room_name_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x" * 9_000)
    with full_after(1_000), pytest.raises(OSError, match="too large") as copied:
        shutil.copyfile(tmp_path / "code.py", tmp_path / "copy.py")
    assert described(copied.value).startswith(f"{tmp_path / 'copy.py'}: ")
    with (
        full_after(4),
        pytest.raises(OSError, match="too large") as held,
        locked(tmp_path / "lock", lambda holder: None),
    ):
        pass
    assert held.value.filename == str(tmp_path / "lock")


def test_a_file_that_cannot_be_made_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".page.html.x1"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught:
        write_text(tmp_path / "page.html", "x")
    assert described(caught.value).startswith(f"{tmp_path / 'page.html'}: permission denied; choose another place")

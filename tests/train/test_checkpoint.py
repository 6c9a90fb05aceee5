"""Checkpoints: rotation, half-written folders, damage, tied weights."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model

from mesalm.train.checkpoint import CheckpointError, Checkpoints, load_weights, save_weights

Train = Callable[..., SimpleNamespace]


def test_only_the_newest_are_kept(train_regression: Train) -> None:
    run = train_regression("run", every=2, keep=3)
    names = sorted(path.name for path in run.checkpoints.folder.iterdir())
    assert names == ["step-00000008", "step-00000010", "step-00000012"]
    assert run.checkpoints.newest().name == "step-00000012"


def test_last_step_is_kept_even_off_the_beat(train_regression: Train) -> None:
    run = train_regression("run", every=5, keep=9)
    assert [path.name for path in run.checkpoints.complete()] == [
        "step-00000005", "step-00000010", "step-00000012",
    ]  # fmt: skip


def test_half_written_folder_is_not_a_checkpoint(train_regression: Train) -> None:
    run = train_regression("run", every=3)
    newest = run.checkpoints.newest()
    half = newest.with_name("step-00000099")
    shutil.copytree(newest, half)
    (half / "state.json").unlink()
    shutil.copytree(newest, newest.with_name("step-00000098.partial"))
    assert run.checkpoints.newest() == newest
    resumed = train_regression("run", resume=True, steps=15)
    assert resumed.outcome.step == 15
    assert not newest.with_name("step-00000098.partial").exists()


def test_interrupted_write_leaves_the_earlier_checkpoint(
    train_regression: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_regression("run", steps=6, every=3)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            train_regression("run", resume=True, steps=9, every=3)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.newest().name == "step-00000006"
    assert train_regression("run", resume=True, steps=9, every=3).outcome.step == 9


def test_a_checkpoint_in_the_background_is_whole_when_every_part_is(tmp_path: Path, slow_disk: Any) -> None:
    checkpoints = Checkpoints(tmp_path / "run", asynchronous=True)
    model = slow_disk.shard(tiny_model(num_hidden_layers=1))
    weight = model.get_input_embeddings().weight
    before = weight.full_tensor().detach().clone()
    checkpoints.save(3, model, torch.optim.SGD(model.parameters()), [], {})
    with torch.no_grad():
        weight.add_(1.0)  # training goes on
    assert checkpoints.writing()
    for _ in range(50):  # what else there is to write is written by then
        assert checkpoints.newest() is None
        time.sleep(0.005)
    assert not list(tmp_path.glob("run/*/state.json"))
    slow_disk.begun[0].set_result(None)
    folder = checkpoints.finish()
    assert not checkpoints.writing()
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000003"]
    assert set(checkpoints.read_state(folder)["files"]) >= {"model.safetensors", "optimiser/__0_0.distcp", "random.pt"}
    assert torch.equal(load_file(folder / "model.safetensors")["model.embed_tokens.weight"], before)


def test_a_part_that_cannot_be_written_leaves_the_earlier_checkpoint(tmp_path: Path, slow_disk: Any) -> None:
    checkpoints = Checkpoints(tmp_path / "run", asynchronous=True)
    model = slow_disk.shard(tiny_model(num_hidden_layers=1))
    begun = slow_disk.begun

    def save(step: int) -> None:
        checkpoints.save(step, model, torch.optim.SGD(model.parameters()), [], {})

    save(3)
    later = threading.Timer(0.1, begun[0].set_result, [None])
    later.start()
    save(6)  # waits for the one before
    assert not begun[1].done()
    assert checkpoints.newest().name == "step-00000003"
    begun[1].set_exception(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        save(9)
    assert len(begun) == 2
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000003"]


def test_a_failed_checkpoint_is_deleted_when_no_part_is_being_written_any_more(
    tmp_path: Path, slow_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", asynchronous=True)
    model = slow_disk.shard(tiny_model(num_hidden_layers=1))

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mesalm.train.checkpoint.save_weights", fail)
    checkpoints.save(3, model, torch.optim.SGD(model.parameters()), [], {})
    for _ in range(50):  # the weights could be written by then
        if not checkpoints.writing():
            break
        time.sleep(0.005)
    part = checkpoints.folder / "step-00000003.partial" / "optimiser" / "__1_0.distcp"
    part.parent.mkdir(parents=True, exist_ok=True)  # as torch does
    part.touch()
    slow_disk.begun[0].set_result(None)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.wait()
    assert not list(checkpoints.folder.iterdir())


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("room", [100, 20_000])
def test_shards_on_a_full_disk_are_named_in_one_line(
    tmp_path: Path, slow_disk: Any, monkeypatch: pytest.MonkeyPatch, room: int, background: bool
) -> None:
    monkeypatch.undo()  # the disk is full, not slow
    model = slow_disk.shard(tiny_model(num_hidden_layers=1))
    optimiser = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path / "run", asynchronous=background)

    def save(step: int) -> None:
        checkpoints.save(step, model, optimiser, [], {})
        checkpoints.wait()

    save(3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "step-00000006" in caught.value.filename
    assert checkpoints.newest().name == "step-00000003"


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.pt", "random.pt"])
def test_damage_is_named_with_the_way_on(train_regression: Train, name: str) -> None:
    run = train_regression("run", every=3)
    damaged = run.checkpoints.newest() / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged; delete .*00012 to resume from step-00000009"):
        train_regression("run", resume=True, steps=15)
    shutil.rmtree(damaged.parent)
    assert train_regression("run", resume=True).outcome.step == 12


def test_damaged_state_is_named(train_regression: Train) -> None:
    run = train_regression("run", every=12, steps=12)
    (run.checkpoints.newest() / "state.json").write_text('{"step": 12')
    with pytest.raises(CheckpointError, match=r"state\.json is damaged; delete .* no earlier checkpoint"):
        train_regression("run", resume=True, steps=15)


@pytest.mark.parametrize(
    ("key", "value"), [("step", 9), ("step", "12"), ("position.row", 3), ("tally.tokens", 1), ("guard", None)]
)
def test_a_state_with_another_value_is_damaged(train_regression: Train, key: str, value: object) -> None:
    """Another step or row trains on to another model, and a missing key is no value at all."""
    run = train_regression("run", every=3)
    path = run.checkpoints.newest() / "state.json"
    state = json.loads(path.read_text())
    *sections, name = key.split(".")
    inner = state[sections[0]] if sections else state
    assert inner.pop(name) != value
    if value is not None:
        inner[name] = value
    path.write_text(json.dumps(state, indent=1))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged; delete .*00012 to resume from step-00000009"):
        train_regression("run", resume=True, steps=15)


def means_the_same(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_no_bit_of_a_state_may_flip(train_regression: Train) -> None:
    run = train_regression("run", every=3)
    newest = run.checkpoints.newest()
    path, whole = newest / "state.json", run.checkpoints.read_numbers(newest)
    content = path.read_bytes()
    harmless = 0
    for place in range(0, len(content), 7):
        flipped = content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :]
        path.write_bytes(flipped)
        if means_the_same(flipped, content):  # another kind of white space, or E for e in a number
            harmless += 1
            assert run.checkpoints.read_numbers(newest) == whole
            continue
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            run.checkpoints.read_numbers(newest)
    assert harmless < len(content) / 7 * 0.1


def test_a_checkpoint_under_the_name_of_another_step_is_refused(train_regression: Train) -> None:
    run = train_regression("run", every=3)
    run.checkpoints.newest().rename(run.checkpoints.folder / "step-00000015")
    with pytest.raises(CheckpointError, match=r"step-00000015: contains step 12; rename the folder back"):
        train_regression("run", resume=True, steps=20)


def test_state_holds_what_the_run_needs(train_regression: Train) -> None:
    run = train_regression("run")
    state = json.loads((run.checkpoints.newest() / "state.json").read_text())
    assert state["step"] == state["tally"]["step"] == 12
    assert state["position"] == run.stream.position.to_dict()
    assert state["guard"] == {"skipped": 0, "in_row": 0, "recent": []}
    assert set(state["files"]) == {"model.safetensors", "optimiser.pt", "random.pt"}


def test_checkpoint_of_a_tied_model_loads_with_from_pretrained(tmp_path: Path) -> None:
    model = tiny_model()
    save_weights(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    again = tiny_model(seed=1)
    load_weights(again, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_weights_of_another_form_are_refused(tmp_path: Path) -> None:
    save_weights(torch.nn.Linear(3, 2, bias=False), tmp_path)
    for other in (torch.nn.Linear(3, 2), torch.nn.Linear(4, 2, bias=False), torch.nn.Sequential(torch.nn.ReLU())):
        with pytest.raises(CheckpointError, match=r"weight|bias"):
            load_weights(other, tmp_path)

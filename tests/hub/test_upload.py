"""Checkpoints sent to the Hub on the way, to a stand-in that has HfApi's own signatures."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from mesalm.hub.upload import Uploads
from mesalm.interrupts import Interrupted
from mesalm.journal import read_journal
from mesalm.train import training
from mesalm.train.loop import Outcome, Probe
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

NAME = "someone/model"


class Hub:
    """A Hub in a folder; it fails, or does not answer before it is told to. `tags` count the commits up to theirs."""

    def __init__(self, folder: Path, *, fails: bool = False, silent: bool = False) -> None:
        self.folder, self.fails, self.answers, self.tags = folder, fails, threading.Event(), {}  # type: ignore[var-annotated]
        if not silent:
            self.answers.set()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            given = inspect.signature(getattr(HfApi, name)).bind(self, *arguments, **options).arguments
            del given["self"]
            self.answers.wait(20)
            if self.fails:
                raise ConnectionError("the network\nis down")
            return getattr(self, f"_{name}")(**given)

        return call

    def _create_repo(self, repo_id: str, private: bool, **_: Any) -> Any:
        assert private
        return SimpleNamespace(repo_id=repo_id)

    def _upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, **_: Any) -> str:
        shutil.copytree(folder_path, self.folder / commit_message, dirs_exist_ok=True)
        return f"{repo_id}@{commit_message}"

    def _create_tag(self, repo_id: str, tag: str, exist_ok: bool = False, **_: Any) -> None:
        if tag not in self.tags:
            self.tags[tag] = len(list(self.folder.glob("step-*")))
        elif not exist_ok:
            conflict: Any = SimpleNamespace(status_code=409, headers={}, request=None)
            raise HfHubHTTPError("there is such a tag", response=conflict)

    def _delete_tag(self, repo_id: str, tag: str, **_: Any) -> None:
        del self.tags[tag]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run/checkpoints/step-00000004"
    tiny_model().save_pretrained(folder)
    (folder / "optimiser.pt").write_text("large")
    before = (folder / "config.json").read_bytes()
    yield folder
    assert not folder.exists() or (folder / "config.json").read_bytes() == before


def uploads(hub: Hub, checkpoint: Path, **options: Any) -> Uploads:
    options = {"every": 4, "last": 8, "private": True, **options}
    return Uploads(NAME, checkpoint.parents[1], api=hub, **options)


def test_what_is_sent_is_a_model_that_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    hub = Hub(tmp_path, silent=True)
    sent = uploads(hub, checkpoint)
    assert list(sent.offer(checkpoint, 4)) == []
    shutil.rmtree(checkpoint)  # as rotation does
    hub.answers.set()
    (line,) = sent.finish()
    assert (line["checkpoint"], line["commit"]) == (checkpoint.name, f"{NAME}@{checkpoint.name}")
    assert list(hub.tags) == [checkpoint.name]
    there = tmp_path / checkpoint.name
    assert not (there / "optimiser.pt").exists()
    assert checkpoint.name in (there / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(there, trust_remote_code=True)
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(loaded(ids).logits, tiny_model()(ids).logits)
    assert not (tmp_path / "run/upload.partial").exists()


def test_a_tag_of_an_earlier_run_goes_to_the_new_commit(checkpoint: Path, tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.tags[checkpoint.name] = 0
    sent = uploads(hub, checkpoint)
    assert list(sent.offer(checkpoint, 4)) == []
    (line,) = sent.finish()
    assert "commit" in line
    assert hub.tags == {checkpoint.name: 1}


def test_only_due_steps_and_the_last_are_sent(checkpoint: Path, tmp_path: Path) -> None:
    sent = uploads(Hub(tmp_path), checkpoint, last=10)
    assert [list(sent.offer(checkpoint, step)) for step in (2, 6)] == [[], []]
    assert list(sent.finish()) == []
    assert list(sent.offer(checkpoint, 10)) == []
    assert [line["checkpoint"] for line in sent.finish()] == [checkpoint.name]


def test_a_silent_hub_holds_nothing_up(checkpoint: Path, tmp_path: Path) -> None:
    hub = Hub(tmp_path, silent=True)
    sent = uploads(hub, checkpoint, patience=0.05)
    assert list(sent.offer(checkpoint, 4)) == []
    assert list(sent.offer(checkpoint, 8)) == [
        {"checkpoint": checkpoint.name, "failed": "the previous upload is still running"}
    ]
    assert list(sent.finish()) == [{"failed": "the last upload did not end within 0.05 seconds"}]
    hub.answers.set()


def test_the_last_checkpoint_waits_for_the_one_before_it(checkpoint: Path, tmp_path: Path) -> None:
    hub = Hub(tmp_path, silent=True)
    sent = uploads(hub, checkpoint)
    assert list(sent.offer(checkpoint, 4)) == []
    last = checkpoint.with_name("step-00000008")
    shutil.copytree(checkpoint, last)
    threading.Timer(0.2, hub.answers.set).start()
    assert [line["checkpoint"] for line in sent.offer(last, 8)] == [checkpoint.name]
    assert [(line["checkpoint"], "commit" in line) for line in sent.finish()] == [(last.name, True)]


def tiny_recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat sat on mat {number} " * 20 for number in range(30)))
    return Recipe.build(
        {
            "name": "tiny",
            "output_dir": str(tmp_path / "runs"),
            "data": {
                "sources": [{"name": "files", "files": str(tmp_path / "text.txt")}],
                "vocab_size": 300,
                "sequence_length": 32,
                "cache_dir": str(tmp_path / "cache"),
                "valid_fraction": 0.0,
                "test_fraction": 0.0,
            },
            "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "train": {"steps": 4, "batch_rows": 2, "device": "cpu"},
            "checkpoint": {"every": 2},
            "upload": {"to": NAME},
        }
    )


def uploaded(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_journal(run / "journal.jsonl") if event["event"] == "upload"]


def test_a_resumed_run_sends_what_its_interruption_has_left(tmp_path: Path) -> None:
    """The process ends after step 3 while the upload of step 2 waits for an answer."""
    recipe, hub = tiny_recipe(tmp_path), Hub(tmp_path / "gone", silent=True, fails=True)

    def make(recipe: Recipe, folder: Path) -> Uploads:
        return Uploads(NAME, folder, every=2, last=4, private=True, api=hub)

    def end(_: Any, step: int) -> list[dict[str, Any]]:
        if step == 2:  # it is heard in step 3
            os.kill(os.getpid(), signal.SIGTERM)
        return []

    def train(*arguments: Any, probes: Sequence[Probe], **options: Any) -> Outcome:
        return training.run(*arguments, probes=[*probes, Probe("signal", 1, end, at_end=False)], **options)

    with pytest.raises(Interrupted):
        pretrain(recipe, quiet=True, train=train, uploading=make)
    silent, hub = hub, Hub(tmp_path)
    run = pretrain(recipe, quiet=True, uploading=make)
    assert [line["commit"] for line in uploaded(run)] == [f"{NAME}@step-0000000{step}" for step in (2, 4)]
    silent.answers.set()


def test_a_run_goes_on_where_the_network_fails(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)

    def lines(name: str, hub: Hub) -> list[dict[str, Any]]:
        def make(recipe: Recipe, folder: Path) -> Uploads:
            return Uploads(NAME, folder, every=0, last=4, private=True, api=hub)

        run = pretrain(recipe.model_copy(update={"name": name}), quiet=True, uploading=make)
        assert (run / "final").is_dir()
        return uploaded(run)

    failed = lines("down", Hub(tmp_path, fails=True))
    assert failed[-1] == {"event": "upload", "step": 4, "tokens": 256, "checkpoint": "step-00000004"} | {
        "failed": "the network is down"
    }
    good = lines("up", Hub(tmp_path))
    assert good[-1]["commit"] == f"{NAME}@step-00000004"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "step-00000004").config.hidden_size == 16

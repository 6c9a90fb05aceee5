"""Runs that are killed at random moments and at chosen file events, and taken up again until they end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  all that a run imports late, so that each life begins with it
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

from mesalm.journal import read_journal
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

CHANGES = (
    "model.num_hidden_layers=2",
    "model.mixers=[mesa, softmax]",
    "train.steps=8",
    "checkpoint.every=2",
    "validate.every=3",
    "sample.every=4",
    "sample.tokens=2",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.chmod"}


def is_file_event(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Tell whether an audited event changes something under a folder; `rmtree` names its files without their folder."""
    if event == "open":
        return str(arguments[0]).startswith(root) and bool(arguments[2] & WRITING)
    return event in CHANGING


def live(recipe: Recipe, root: Path, kill_at: int = 0) -> None:
    """Train in this process, one that was forked, up to the end or to just before the given file event."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_file_event(event, arguments, str(root)):
            count()

    sync = os.fsync

    def counted_sync(handle: int) -> None:
        count()
        sync(handle)

    os.fsync = counted_sync
    sys.addaudithook(watch)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    code = 1
    try:
        pretrain(recipe, quiet=True)
        code = 0
    except BaseException:
        (root / "error").write_text(traceback.format_exc())
    finally:
        (root.with_suffix(".seen")).write_text(str(seen))
        os._exit(code)


def life(recipe: Recipe, root: Path, *, event: int = 0, seconds: float | None = None) -> bool:
    """Fork a life of a run and wait for its end; return whether it was killed. Fails where it ended with an error."""
    process = os.fork()
    if process == 0:
        live(recipe, root, event)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, (root / "error").read_text()
    return False


def outcome(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Return everything that two runs must have in common: all files, what decides the rest of a run, the journal."""
    newest = recipe.folder / "checkpoints" / "step-00000008"
    files = ["final/model.safetensors", *(f"checkpoints/{newest.name}/{name}.pt" for name in ("optimiser", "random"))]
    state = json.loads((newest / "state.json").read_text())
    del state["tally"]["seconds"], state["sha256"]
    return {
        "tree": sorted(path.relative_to(root).as_posix() for path in root.rglob("*")),
        "digests": {name: hashlib.sha256((recipe.folder / name).read_bytes()).hexdigest() for name in files},
        "state": state,
        "journal": [
            {
                name: value
                for name, value in line.items()
                if name not in ("seconds", "seconds_left", "tokens_per_second")
            }
            for line in read_journal(recipe.folder / "journal.jsonl")
            if line["event"] != "start"
        ],
    }


@pytest.fixture
def trial(load: Callable[..., Recipe], tmp_path: Path) -> Callable[..., tuple[Recipe, Path]]:
    """Give each trial a folder with runs and a cache of its own."""

    def make(name: str, *more: str) -> tuple[Recipe, Path]:
        root = tmp_path / name
        root.mkdir()
        return load(*CHANGES, *more, f"output_dir={root}/runs", f"data.cache_dir={root}/cache"), root

    return make


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "data"),
    [
        (6, ()),
        pytest.param(200, (), marks=pytest.mark.slow),
        pytest.param(20, ("data.stream=true", "data.stream_sample=20"), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    trial: Callable[..., tuple[Recipe, Path]], kills: int, data: tuple[str, ...]
) -> None:
    chance = random.Random(kills)
    recipe, root = trial("whole", *data)
    begun = time.monotonic()
    assert not life(recipe, root)
    seconds = time.monotonic() - begun
    events = int(root.with_suffix(".seen").read_text())
    assert events > 100
    expected = outcome(recipe, root)

    made = {"event": 0, "moment": 0}
    for number in range(10 * kills):
        if sum(made.values()) == kills:
            break
        recipe, root = trial(f"trial-{number}", *data)
        # events spread evenly, however many there are; first in a fresh run, then in one that was killed before
        event, moment = 1 + int(number * 0.618034 % 1 * events), chance.uniform(0, seconds)
        told = f"trial {number}: event {event}, moment {moment:.3f}"
        for kind in ("event", "moment") if number % 2 else ("moment", "event"):
            if made[kind] < kills // 2:
                how: dict[str, Any] = {"event": event} if kind == "event" else {"seconds": moment}
                made[kind] += life(recipe, root, **how)
        assert not life(recipe, root), told
        found = outcome(recipe, root)
        for what, value in expected.items():
            assert found[what] == value, f"{told}: {what}"
        shutil.rmtree(root)
    assert made == {"event": kills // 2, "moment": kills // 2}

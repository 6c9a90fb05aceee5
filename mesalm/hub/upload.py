"""Upload checkpoints to the Hub from a background thread during training."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from mesalm.hub.publish import add_code

SENT = ("config.json", "model.safetensors", "tokenizer*", "chat_template*")
"""The files of a checkpoint that a reader needs."""

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [mesalm]
---

# {name}

A checkpoint of a run in progress: `{step}`. Earlier checkpoints are revisions with names of the same form.

    AutoModelForCausalLM.from_pretrained("{place}", revision="{step}", trust_remote_code=True)
"""


class Uploads:
    """The uploads of one run: each a commit with the tag ``step-NNNNNNNN``, one at a time.

    ``place`` is a repository, created if missing; ``every`` and ``last`` select the steps. A failed upload only adds a
    line to the journal. A checkpoint that is due during another upload is skipped, but the last one waits up to
    ``patience`` seconds.
    """

    def __init__(
        self, place: str, folder: Path, *, every: int, last: int, private: bool, api: Any = None, patience: float = 600
    ) -> None:
        self.place, self.every, self.last, self.private = place, every, last, private
        self.staged, self.patience = folder / "upload.partial", patience
        self.api = api or HfApi()
        self._thread: threading.Thread | None = None
        self._said: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        """Return whether the checkpoint of a step is to be uploaded."""
        return step == self.last or not self.every or step % self.every == 0

    def offer(self, checkpoint: Path, step: int) -> Iterator[dict[str, Any]]:
        """Start the upload of a checkpoint if it is due; yield the result of the previous one."""
        yield from self._outcome(self.patience if step == self.last else 0.0)
        if not self.due(step):
            return
        if self._thread is not None:
            yield {"checkpoint": checkpoint.name, "failed": "the previous upload is still running"}
            return
        self._thread = threading.Thread(target=self._send, args=(checkpoint.name,), daemon=True)
        try:
            self._stage(checkpoint)
        except (OSError, ValueError) as error:
            self._thread = None
            yield {"checkpoint": checkpoint.name, "failed": _line(error)}
        else:
            self._thread.start()

    def finish(self) -> Iterator[dict[str, Any]]:
        """Wait for the last upload for at most ``patience`` seconds; yield its result."""
        yield from self._outcome(self.patience)
        if self._thread is not None:
            yield {"failed": f"the last upload did not end within {self.patience:g} seconds"}

    def _outcome(self, wait: float) -> Iterator[dict[str, Any]]:
        if self._thread is None:
            return
        self._thread.join(wait)
        if not self._thread.is_alive():
            self._thread = None
            yield self._said

    def _stage(self, checkpoint: Path) -> None:
        """Copy the files to upload into a separate folder, since the checkpoint may be deleted meanwhile."""
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir()
        for pattern in SENT:
            for file in checkpoint.glob(pattern):
                _link(file, self.staged / file.name)
        add_code(self.staged)
        card = CARD.format(name=self.place.split("/")[-1], place=self.place, step=checkpoint.name)
        (self.staged / "README.md").write_text(card, encoding="utf-8")

    def _send(self, step: str) -> None:
        begun = time.monotonic()
        try:
            place = self.api.create_repo(self.place, private=self.private, exist_ok=True).repo_id
            commit = self.api.upload_folder(repo_id=place, folder_path=self.staged, commit_message=step)
            self._tag(place, step)
            shutil.rmtree(self.staged)
        except Exception as error:  # whatever it is, training goes on
            self._said = {"checkpoint": step, "failed": _line(error)}
        else:
            self._said = {"checkpoint": step, "commit": str(commit), "seconds": time.monotonic() - begun}

    def _tag(self, place: str, step: str) -> None:
        """Tag the newest commit, replacing a tag left by an earlier run, which would name that run's weights."""
        try:
            self.api.create_tag(place, tag=step)
        except HfHubHTTPError as error:
            if error.response.status_code != HTTPStatus.CONFLICT:
                raise
            self.api.delete_tag(place, tag=step)
            self.api.create_tag(place, tag=step)


def make_uploads(recipe: Any, folder: Path) -> Uploads:
    """Return the uploads configured in a recipe's section ``upload``, for the run in ``folder``."""
    wanted = recipe.upload
    return Uploads(wanted.to, folder, every=wanted.every, last=recipe.steps, private=wanted.private)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # a disk without links
        shutil.copyfile(file, target)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

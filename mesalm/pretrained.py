"""Open saved models and tokenizers, from a folder or the Hub, with one-line errors that name them."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"
PATIENCE = 15.0
"""Seconds within which the Hub must answer once; huggingface_hub's own attempts for one file can take minutes."""
OFFLINE = "HF_HUB_OFFLINE"
"""The attribute by which huggingface_hub and datasets read from their caches only."""
_asked: dict[bool, float] = {}  # when the Hub answered (True), and when it was last asked (False)


def load(kind: Any, place: str, what: str, *, name: str | None = None, **options: Any) -> Any:
    """Return ``kind.from_pretrained(place, **options)``, where ``kind`` is a class of transformers.

    ``what`` says what is opened, and ``name`` is what the user typed for ``place``; errors begin with it.
    Raises ValueError with one line for any failure.
    """
    with opening(place, what, name or place):
        return kind.from_pretrained(place, **options)


@contextmanager
def opening(place: str, what: str, name: str) -> Iterator[None]:
    """Turn any error of the block, which opens ``place``, into a ValueError of one line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the error below says what matters
    try:
        with asking_hub(place):
            yield
    except Exception as error:  # a broken file can make any part of transformers fail in any way
        raise ValueError(f"{name}: no {what} could be opened there ({_reason(place, error)})") from error
    finally:
        logging.set_verbosity(before)


@contextmanager
def asking_hub(place: str) -> Iterator[None]:
    """Hide huggingface_hub's warnings about retries in the block, which opens ``place``; the final error says enough.

    Unless ``place`` is a path or the Hub answers within `PATIENCE`, the block reads only cached files.
    Raises ConnectionError if it then ends with an OSError, as it does where files are not in the cache.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # a Hub name has at most one slash
        if getattr(constants, OFFLINE) or Path(place).exists() or place.count("/") > 1 or _hub_answers():
            yield
            return
        readers = [constants, *filter(None, [sys.modules.get("datasets.config")])]
        try:
            for reader in readers:
                setattr(reader, OFFLINE, True)
            yield
        except OSError:
            raise ConnectionError("the Hub cannot be reached, and the cache has no such files") from None
        finally:
            for reader in readers:
                setattr(reader, OFFLINE, False)
    finally:
        logging.set_verbosity(before)


def _hub_answers() -> bool:
    """Return whether the Hub has ever answered this process, or does within `PATIENCE`; ask at most once a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if True in _asked or time.monotonic() < _asked.get(False, -math.inf) + 60:
        return True in _asked

    def ask() -> None:
        for pause in (1, 0):
            try:
                get_session().head(constants.ENDPOINT, timeout=PATIENCE)
                _asked[True] = time.monotonic()
                return
            except Exception:  # its type depends on the HTTP library, which differs between huggingface_hub's releases
                time.sleep(pause)

    # a thread, since a connection tries each address of the host in turn, each with the whole timeout
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    _asked[False] = time.monotonic()
    return True in _asked


def load_model(kind: Any, place: str, *, name: str | None = None, **options: Any) -> Any:
    """Return the model at ``place`` like `load`, and check that its weights match its configuration.

    Raises ValueError with one line, also for a weight that is missing or has another shape, and for an unexpected
    weight of a mesa model.
    """
    model, found = load(
        kind, place, "model", name=name, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    for weight, saved, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{name or place}: the weights do not match config.json: {weight} is {_shape(saved)}, not "
            f"{_shape(wanted)}; get the folder again"
        )
    # for other families transformers knows which weights may be left over
    left_over = found["unexpected_keys"] if model.config.model_type == "mesa" else ()
    for words, weights in (("is missing", found["missing_keys"]), ("has no place in the model", left_over)):
        for weight in sorted(weights):
            raise ValueError(
                f"{name or place}: the weights do not match config.json: {weight} {words}; get the folder again"
            )
    return model


def _reason(place: str, error: Exception) -> str:
    """Return why something could not be opened, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = re.sub(r"\s+", " ", lines[0]).rstrip(".") if lines else ""
    if isinstance(error, OSError) and not Path(place).exists():
        return "there is no such folder, and " + (
            first if isinstance(error, ConnectionError) else f"from the Hub: {first}"
        )
    if first.startswith(NO_TOKENIZER):
        return "it contains no tokenizer; save the tokenizer in the same folder"
    return first if isinstance(error, (OSError, ValueError)) and first else f"{type(error).__name__}: {first}"


def _shape(size: Any) -> str:
    return " x ".join(str(length) for length in size)

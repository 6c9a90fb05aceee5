"""Open saved models and tokenizers, from a folder or the Hub, with one-line errors that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"


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
        with without_retries():
            yield
    except Exception as error:  # a broken file can make any part of transformers fail in any way
        raise ValueError(f"{name}: no {what} could be opened there ({_reason(place, error)})") from error
    finally:
        logging.set_verbosity(before)


@contextmanager
def without_retries() -> Iterator[None]:
    """Hide huggingface_hub's warnings about retries; the final error is reported once."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


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
        return f"there is no such folder, and from the Hub: {first}"
    if first.startswith(NO_TOKENIZER):
        return "it contains no tokenizer; save the tokenizer in the same folder"
    return first if isinstance(error, (OSError, ValueError)) and first else f"{type(error).__name__}: {first}"


def _shape(size: Any) -> str:
    return " x ".join(str(length) for length in size)

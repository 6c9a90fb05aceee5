"""Where a model named on a command line lies, and how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mesalm.model.soft_prefix import load_prefix, read_record
from mesalm.model.whole_weights import open_whole


def locate(model: str) -> str:
    """Return the folder or Hub name that `from_pretrained` takes for MODEL.

    MODEL is a run folder (its `final/` is meant), a folder that holds a `config.json`, or a name on the Hub.

    Raises:
        ValueError: a run that has not finished, a folder without a model, or a name that is neither.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "final" / "config.json").is_file():
        return str(folder / "final")
    if (folder / "journal.jsonl").is_file():
        raise ValueError(f"{model}: this run has no final/ yet; finish it with `mesalm train` on the same recipe")
    if folder.exists():
        raise ValueError(f"{model}: no config.json here; give a run folder, a saved model's folder or a Hub name")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(f"{model}: there is no such folder")
    return model


def open_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies with MODEL; see `locate`.

    Raises:
        ValueError: no tokenizer lies there.
    """
    place = locate(model)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{model}: no tokenizer could be opened there ({first})") from None


def open_model(
    model: str, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu", **kwargs: Any
) -> PreTrainedModel:
    """Return the causal language model named MODEL, in evaluation mode on `device`.

    A folder that `mesalm tune` wrote opens as the model it was tuned for with its soft prefix before it.

    Args:
        model: see `locate`.
        dtype: of the weights; "auto" is the one they were saved in.
        kwargs: handed to `from_pretrained`, `trust_remote_code` for instance.

    Raises:
        ValueError: nothing can be opened there, or its configuration does not describe its weights.
    """
    place = locate(model)
    tuned = read_record(Path(place))
    if tuned is not None:
        base = open_model(tuned["base"], dtype=dtype, device=device, **kwargs)
        prefixed: Any = load_prefix(base, Path(place)).to(device).eval()
        return prefixed
    try:
        opened: Any = open_whole(place, dtype=dtype, **kwargs)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{model}: no model could be opened there ({first})") from None
    return opened.to(device).eval()

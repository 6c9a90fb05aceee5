"""Find and open a model named on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mesalm.pretrained import load, load_model
from mesalm.runs import resolve
from mesalm.tuning.soft_prefix import load_prefix, read_record


def locate(model: str) -> str:
    """Return the folder or Hub name that `from_pretrained` takes for MODEL; see `mesalm.runs.resolve`."""
    return resolve(model).load_from


def open_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of MODEL; see `locate`.

    Raises:
        ValueError: there is no tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer, locate(model), "tokenizer", name=model, trust_remote_code=trust_remote_code
    )
    return tokenizer


def usable_device(name: str | torch.device) -> torch.device:
    """Return the device with this name; "auto" means CUDA if available, else the CPU.

    Raises:
        ValueError: the device does not exist here, or stores no data ("meta").
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        number = torch.zeros(1, device=name)
        number.item()
        return number.device
    except (RuntimeError, AssertionError, NotImplementedError):  # which of them depends on how torch was built
        cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise ValueError(
            f"device: {str(name)!r} cannot be used here; choose from {', '.join(['cpu', *cards])}"
        ) from None


def open_model(
    model: str, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu", **kwargs: Any
) -> PreTrainedModel:
    """Return the causal language model named MODEL, in evaluation mode on `device`.

    A folder written by `mesalm tune` opens as the model it was tuned for, with the soft prefix.

    Args:
        model: see `locate`.
        dtype: dtype of the weights; "auto": the one they were saved in.
        kwargs: passed to `from_pretrained`, such as `trust_remote_code`.

    Raises:
        ValueError: there is no model, its configuration does not match its weights, or there is no such
            device.
    """
    where = usable_device(device)
    place = locate(model)
    base = _tuned_for(Path(place))
    if base is not None:
        prefixed: Any = load_prefix(open_model(base, dtype=dtype, device=where, **kwargs), Path(place))
        return prefixed.to(where).eval()
    opened: Any = load_model(AutoModelForCausalLM, place, name=model, dtype=dtype, **kwargs)
    return opened.to(where).eval()


def refuse_prefix(model: str) -> None:
    """Raise ValueError if MODEL is a folder written by `mesalm tune`, which has a prefix but no weights of a model."""
    base = _tuned_for(Path(locate(model)))
    if base is not None:
        raise ValueError(f"{model}: holds a soft prefix, not a model; name the model it was tuned for, {base}")


def prefix_length(folder: Path) -> int:
    """Return the number of vectors of the soft prefix in a folder, 0 where there is none."""
    record = read_record(folder) or {}
    return int(record.get("vectors", 0))


def _tuned_for(folder: Path) -> str | None:
    """Return the model that the soft prefix in a folder was tuned for, None where there is no prefix."""
    try:
        record = read_record(folder)
        return None if record is None else str(record["base"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}: its prefix.json was not written by `mesalm tune`; tune again") from None

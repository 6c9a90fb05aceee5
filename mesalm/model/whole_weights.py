"""Opening a causal language model only where its configuration describes its weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM


def open_whole(place: str, **kwargs: Any) -> Any:
    """Return the causal language model of a folder or Hub name, every weight of it from there.

    transformers starts weights anew that it does not find, and leaves out those that the model has no place for.

    Args:
        place: what `from_pretrained` takes.
        kwargs: handed to `from_pretrained`.

    Raises:
        ValueError: weights that are missing or of another shape; for a mesa model also weights too many.
    """
    opened: Any = AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    model, found = opened
    faults = {
        "of another shape": sorted(name for name, *_ in found["mismatched_keys"]),
        "missing": sorted(found["missing_keys"]),
        "too many": sorted(found["unexpected_keys"]) if model.config.model_type == "mesa" else [],
    }
    for fault, names in faults.items():
        if names:
            raise ValueError(
                f"{place}: config.json does not describe the weights beside it ({len(names)} {fault}, first "
                f"{names[0]}); give them the configuration they were saved with"
            )
    return model

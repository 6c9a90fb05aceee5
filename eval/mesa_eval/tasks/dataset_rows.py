"""Dataset rows read with `datasets.load_dataset`, as text columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mesalm.pretrained import asking_hub


def read_dataset(
    dataset: str,
    subset: str | None,
    revision: str | None,
    split: str,
    columns: Mapping[str, str],
    most: int,
    where: str,
    verbatim: bool = False,
) -> tuple[list[dict[str, str]], list[str] | None]:
    """Return up to `most` rows of a split as {"input", "output", "group"}, and the class names of a class column.

    columns: the dataset's column for each of the three keys; a missing group column gives "". Class columns (integers
    with names) are converted to their names. Each cell is joined into one line unless `verbatim`.
    Raises a one-line ValueError if the dataset, the split or a column does not exist.
    """
    import datasets

    try:
        with asking_hub(dataset):
            rows = datasets.load_dataset(dataset, subset, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        words = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"{where}: dataset {dataset!r}, split {split!r} cannot be loaded ({words})") from error
    for key in ("input", "output"):
        if columns[key] not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise ValueError(f"{where}: no column {columns[key]!r} for {key}; the columns are {there}")
    names = {key: getattr(rows.features.get(column), "names", None) for key, column in columns.items()}
    found = []
    for row in islice(rows, most):
        entry = {key: _text(row.get(column), names[key], verbatim) for key, column in columns.items()}
        if entry["input"].strip() and entry["output"].strip():
            found.append(entry)
    return found, names["output"]


def _text(value: Any, names: list[str] | None, verbatim: bool) -> str:
    """Convert one cell to text: a class to its name, any other value with `str`."""
    if value is None:
        return ""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    return str(value) if verbatim else " ".join(str(value).split())

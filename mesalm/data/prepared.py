"""Prepared data on disk: rows for training, held-out documents, the tokenizer and the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# Raised whenever the meaning of prepared data changes, so that older ones are not taken for new.
FORMAT = 1
MANIFEST = "manifest.json"


class Prepared:
    """Open a folder that `mesalm.data.prepare` wrote. Raises DataError when it is not one.

    ``manifest`` holds: hash, settings, sources, tokenizer (kind, vocab_size, bos_token_id, eos_token_id,
    pad_token_id), splits (documents, bytes, tokens, rows, dropped_tokens, bytes_per_token, domains),
    duplicates, empty, bad, undecodable, near_copies, bytes_per_token, versions. Tokens count the one that begins
    each document, so nats a token over log(2) times bytes_per_token are bits a byte of the stream.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: not a folder of prepared data; run mesalm prepare") from error
        if self.manifest.get("format") != FORMAT:
            raise DataError(f"{self.path}: written by another version of mesalm; run mesalm prepare again")

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return int(self.manifest["tokenizer"]["vocab_size"])

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens in a row."""
        return int(self.manifest["settings"]["sequence_length"])

    def bytes_per_token(self, split: str) -> float:
        """Return UTF-8 bytes a token of one split. Raises DataError where there is no text."""
        value = self._split(split)["bytes_per_token"]
        if value is None:
            raise DataError(f"{self.path}: split {split!r} has no text to count bytes of")
        return float(value)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises DataError for data prepared with tokenizer 'none'."""
        from transformers import AutoTokenizer

        if self.manifest["tokenizer"]["kind"] == "none":
            raise DataError(f"{self.path}: prepared without a tokenizer; set data.tokenizer to have one")
        return AutoTokenizer.from_pretrained(self.path / "tokenizer")

    def rows(self, split: str) -> datasets.Dataset:
        """Open the packed rows of a split: input_ids (length sequence_length) and segments, as NumPy."""
        import datasets

        self._split(split)
        return datasets.load_from_disk(str(self.path / "rows" / split)).with_format("numpy")

    def documents(self, split: str) -> datasets.Dataset:
        """Open the held-out documents of split valid or test: columns id, domain, text."""
        import datasets

        self._split(split)
        if split == "train":
            raise DataError("documents are kept of the splits valid and test only")
        if self.manifest["tokenizer"]["kind"] == "none":
            raise DataError(f"{self.path}: prepared without a tokenizer, so its documents have no text")
        return datasets.load_from_disk(str(self.path / "documents" / split))

    def summary(self) -> str:
        """Return what was prepared, a line a split, for a person to read."""
        lines = [f"prepared: {self.path}"]
        for split, counts in self.manifest["splits"].items():
            lines.append(
                f"  {split}: {counts['documents']:,} documents, {counts['bytes']:,} bytes, "
                f"{counts['tokens']:,} tokens, {counts['rows']:,} rows of {self.sequence_length}"
            )
        left_out = {word: self.manifest[word] for word in ("duplicates", "empty", "undecodable")}
        left_out["near copies"] = self.manifest.get("near_copies", 0)  # data prepared by 0.1.0 have no such count
        left_out["bad"] = self.manifest["bad"]["count"]
        counted = [f"{count:,} {word}" for word, count in left_out.items() if count]
        lines.append(f"  left out: {', '.join(counted) or 'nothing'}")
        return "\n".join(lines)

    def _split(self, split: str) -> dict[str, Any]:
        splits = self.manifest["splits"]
        if split not in splits:
            raise DataError(f"no split {split!r}; the splits are {', '.join(splits)}")
        return splits[split]

"""Prepared data on disk: rows for training, held-out documents, the tokenizer and the manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
from datasets.utils import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mesalm.files import SealError, first_damaged, read_sealed
from mesalm.wording import plural

from .documents import DataError
from .stream import Mixture

# Increased whenever the format of prepared data changes, so that older data are not used.
FORMAT = 2
MANIFEST = "manifest.json"
MANY_BYTES = 1_000_000_000
"""Above this size, reading shows a progress bar."""


class Prepared:
    """A folder written by `mesalm.data.prepare`. Raises DataError if it is not such a folder, or damaged.

    Files are compared with the digests of the manifest before they are opened, unless ``checked`` is set.

    ``manifest`` holds: hash, settings, sources, tokenizer (kind, vocab_size, bos_token_id, eos_token_id,
    pad_token_id, sha256), splits (documents, bytes, tokens, rows, sha256, dropped_tokens, bytes_per_token,
    domains, and of those held out lost: the documents that a given tokenizer does not bring back, with which
    there are no bytes_per_token), duplicates, empty, bad, undecodable, near_copies, contamination (of each
    evaluation file: name, sha256, texts, short ones, documents dropped), licences, bytes_per_token, versions, files
    (bytes, sha256). Where sources have weights, splits.train has parts, the rows of each. Tokens count the one that
    begins each document, so nats per token over log(2) times bytes_per_token are bits per byte of the stream.
    """

    def __init__(self, path: str | Path, *, checked: bool = False) -> None:
        self.path = Path(path)
        self.checked = checked
        if not (self.path / MANIFEST).is_file():
            raise DataError(f"{self.path}: not a folder of prepared data; run mesalm prepare")
        try:
            self.manifest: dict[str, Any] = read_sealed(self.path / MANIFEST)
        except SealError as error:
            raise DataError(self._damage(MANIFEST)) from error
        if self.manifest["format"] != FORMAT:
            raise DataError(f"{self.path}: written by another version of mesalm; run mesalm prepare again")

    def check(self, part: str = "") -> None:
        """Compare the files, or those under the folder ``part``, with their digests.

        Raises DataError that names the first damaged file.
        """
        files = {name: about for name, about in self.manifest["files"].items() if name.startswith(part)}
        total = sum(about["bytes"] for about in files.values())
        with tqdm(total=total, desc="Checking", unit="B", unit_scale=True, disable=total < MANY_BYTES) as bar:
            name = first_damaged(self.path, files, bar.update)
        if name is not None:
            raise DataError(self._damage(name))
        self.checked = self.checked or not part

    def _open(self, part: str) -> str:
        if not self.checked:
            self.check(f"{part}/")
        return str(self.path / part)

    def _damage(self, name: str) -> str:
        return f"{self.path / name} is damaged or from another version; delete {self.path} and prepare again"

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return int(self.manifest["tokenizer"]["vocab_size"])

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens in a row."""
        return int(self.manifest["settings"]["sequence_length"])

    def bytes_per_token(self, split: str) -> float:
        """Return UTF-8 bytes per token of one split. Raises DataError without text, or if tokens do not restore it."""
        value = self._split(split)["bytes_per_token"]
        if value is None:
            raise DataError(
                f"{self.path}: split {split!r} has no text, or its tokens do not decode to exactly that text"
            )
        return float(value)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises DataError for data prepared with tokenizer 'none'."""
        if self.manifest["tokenizer"]["kind"] == "none":
            raise DataError(f"{self.path}: prepared without a tokenizer; set data.tokenizer and prepare again")
        return AutoTokenizer.from_pretrained(self._open("tokenizer"))

    def rows(self, split: str) -> datasets.Dataset:
        """Open the packed rows of a split: input_ids (length sequence_length) and segments, as NumPy."""
        self._split(split)
        return datasets.load_from_disk(self._open(f"rows/{split}")).with_format("numpy")

    def mixture(self) -> Mixture | None:
        """Return how the rows of train are drawn if the sources have weights, else None."""
        sizes = self._split("train").get("parts")
        weights = [source.get("weight") for source in self.manifest["settings"]["sources"]]
        return None if sizes is None else Mixture(sizes, [weight for weight in weights if weight is not None])

    def documents(self, split: str) -> datasets.Dataset:
        """Open the held-out documents of split valid or test: columns id, domain, text."""
        self._split(split)
        if split == "train":
            raise DataError("only the splits valid and test keep their documents")
        if self.manifest["tokenizer"]["kind"] == "none":
            raise DataError(f"{self.path}: prepared without a tokenizer, so its documents have no text")
        return datasets.load_from_disk(self._open(f"documents/{split}"))

    def contents(self) -> dict[str, Any]:
        """Return digests of rows, tokenizer and sources, with the weights, which identify the data of a run."""
        return {
            "rows": {split: self._split(split)["sha256"] for split in ("train", "valid")},
            "tokenizer": self.manifest["tokenizer"].get("sha256"),
            "sources": self.manifest["sources"],
            "weights": [source.get("weight") for source in self.manifest["settings"]["sources"]],
        }

    def summary(self) -> str:
        """Return a readable summary of the data, with one line per split."""
        lines = [f"prepared: {self.path}"]
        for split, counts in self.manifest["splits"].items():
            said = ", ".join(plural(counts[f"{word}s"], word) for word in ("document", "byte", "token", "row"))
            lines.append(f"  {split}: {said} of {self.sequence_length}")
            if counts.get("lost"):
                lost = plural(counts["lost"], "document does", "documents do")
                lines.append(f"  {split}: {lost} not decode to the same text: no bits per byte")
        left_out = {word: self.manifest[word] for word in ("empty", "undecodable")}
        left_out["contaminated"] = sum(file["documents"] for file in self.manifest.get("contamination", []))
        left_out["bad"] = self.manifest["bad"]["count"]
        copies = {"exact copy": self.manifest["duplicates"], "near-copy": self.manifest["near_copies"]}
        counted = [plural(count, word) for word, count in copies.items() if count]
        counted += [f"{count:,} {word}" for word, count in left_out.items() if count]
        lines.append(f"  left out: {', '.join(counted) or 'nothing'}")
        return "\n".join(lines)

    def _split(self, split: str) -> dict[str, Any]:
        splits = self.manifest["splits"]
        if split not in splits:
            raise DataError(f"no split {split!r}; the splits are {', '.join(splits)}")
        return splits[split]


def changed_sources(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], *, in_order: bool = False
) -> str | None:
    """Describe how the contents of two manifests' sources differ; None if they do not.

    Paths and names of files are ignored, and so is their order unless ``in_order``.
    """
    was, now = dict(_held(old)), dict(_held(new))
    gone = [was[digest] for digest in was if digest not in now]
    came = [now[digest] for digest in now if digest not in was]
    found = [f"{name} has changed" for name in gone if name in came]
    found += [f"{name} is missing" for name in gone if name not in came]
    found += [f"{name} is new" for name in came if name not in gone]
    if in_order and not found and list(was) != list(now):
        moved = next(now[digest] for digest, before in zip(now, was, strict=True) if digest != before)
        found = [f"{moved} has moved within the order in which the files are streamed"]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0] + more if found else None


def _held(sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the digest (or other identity) and the name of everything that sources read."""
    for source in sources:
        for part in source.get("files", [source]):
            yield part.get("sha256") or repr(sorted(part.items())), part["name"]


def say(line: str) -> None:
    """Print a line to the standard error, unless that has lost its reader."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def hidden_bars(hide: bool = True) -> Iterator[None]:
    """Hide the progress bars of `datasets`, and ours, while the block runs, if ``hide`` or not on a terminal."""
    if (not hide and sys.stderr.isatty()) or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()

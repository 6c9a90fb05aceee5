"""Build one folder of prepared data: gather, train the tokenizer, tokenise, pack, describe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from mesalm.versions import versions
from mesalm.wording import plural

from .bpe import Encoder, add_start_token, begin_id, count_lost, tokenizer_hash, train_tokenizer, vocabulary_size
from .data_settings import DataSettings
from .documents import DataError, Source
from .gather import SPLITS, Gathered, write_arrow
from .packing import PackedRows, Packer
from .prepared import hidden_bars, say

# Below this many bytes, starting processes costs more time than it saves.
MANY_BYTES = 200_000_000
ENCODE_BATCH = 128


@dataclass
class Build:
    """Builds prepared data from ``sources`` in the empty folder ``folder``.

    ``tokenizer`` is None if it is to be trained here ('train') or if there is none ('none').
    """

    settings: DataSettings
    sources: Sequence[Source]
    tokenizer: PreTrainedTokenizerBase | None
    folder: Path
    quiet: bool

    def run(self) -> dict[str, Any]:
        """Build everything except the manifest, and return the manifest's entries."""
        work = self.folder / "work"
        work.mkdir()
        self._say(f"reading {', '.join(dict.fromkeys(source.name for source in self.settings.sources))}")
        gathered = Gathered(self.settings, self.sources, self.tokenizer, work / "documents.arrow")
        for path in gathered.faults.empty_files[:20]:
            self._say(f"skipped the empty file {path}")
        documents = datasets.Dataset.from_file(str(gathered.path))
        about_tokenizer = self._tokenizer(documents, gathered)
        self._say(f"tokenising {plural(len(documents), 'document')}, {int(gathered.sizes.sum()):,} bytes")
        tokens = self._tokenise(documents, gathered, work / "tokens.arrow")
        lengths = _token_counts(tokens)
        splits: dict[str, Any] = {}
        self._say(f"packing {int(lengths.sum()):,} tokens into rows of {self.settings.sequence_length}")
        for split in SPLITS:
            parts = self._parts(gathered, split)
            packer, rows = self._pack(tokens, parts, split, work)
            splits[split] = _describe(gathered, lengths, split, packer)
            if len(parts) > 1:
                splits[split]["parts"] = rows
            if split != "train" and self.settings.tokenizer != "none":
                chosen = np.flatnonzero(gathered.splits == SPLITS.index(split))
                kept = documents.select_columns(["id", "domain", "text"]).select(chosen)
                splits[split]["lost"] = self._count_lost(kept, tokens.select(chosen))
                if splits[split]["lost"]:
                    splits[split]["bytes_per_token"] = None
                _save(kept, self.folder / "documents" / split)
        self._check_rows(splits)
        shutil.rmtree(work)
        return {
            "tokenizer": about_tokenizer,
            "splits": splits,
            "bytes_per_token": _ratio(int(gathered.sizes.sum()), int(lengths.sum())),
            "duplicates": gathered.duplicates,
            "empty": gathered.empty + len(gathered.faults.empty_files),
            "bad": {"count": gathered.faults.count, "examples": gathered.faults.examples},
            "undecodable": gathered.faults.undecodable,
            "near_copies": gathered.faults.near_copies,
            "contamination": gathered.contamination,
            "licences": [
                settings.licence or source.licence
                for settings, source in zip(self.settings.sources, self.sources, strict=True)
            ],
            "versions": versions(("datasets", "tokenizers", "transformers")),
        }

    def _say(self, line: str) -> None:
        if not self.quiet:
            say(line)

    def _tokenizer(self, documents: datasets.Dataset, gathered: Gathered) -> dict[str, Any]:
        settings = self.settings
        if settings.tokenizer == "none":
            specials = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
            return {"kind": "none", "vocab_size": settings.vocab_size, **specials}
        about: dict[str, Any] = {"kind": "given", "name": settings.tokenizer}
        if self.tokenizer is None:
            # the first documents, in shuffled order, up to this many bytes
            members = gathered.members("train")
            total = np.cumsum(gathered.sizes[members])
            sample = members[: int(np.searchsorted(total, settings.tokenizer_bytes)) + 1]
            sample_bytes = int(gathered.sizes[sample].sum())
            self._say(f"training a tokenizer with {settings.vocab_size:,} tokens on {sample_bytes:,} bytes")
            texts = (documents[int(number)]["text"] for number in sample)
            self.tokenizer = train_tokenizer(texts, settings.vocab_size)
            about = {"kind": "trained", "sample_bytes": sample_bytes}
        add_start_token(self.tokenizer)
        self.tokenizer.save_pretrained(self.folder / "tokenizer")
        return {
            **about,
            "vocab_size": vocabulary_size(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
            "sha256": tokenizer_hash(self.tokenizer),
        }

    def _tokenise(self, documents: datasets.Dataset, gathered: Gathered, path: Path) -> datasets.Dataset:
        """Return a dataset with the column input_ids: the tokens of each document, including the start token."""
        features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
        usual = 1 if gathered.sizes.sum() < MANY_BYTES else os.cpu_count() or 1
        processes = min(self.settings.processes or usual, len(documents))
        return documents.select_columns(["text", "input_ids"]).map(
            Tokenise(self.tokenizer, trained=self.settings.tokenizer == "train"),
            batched=True,
            batch_size=ENCODE_BATCH,
            writer_batch_size=ENCODE_BATCH,
            remove_columns=["text"],
            features=features,
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(path),
            new_fingerprint="tokens",
            desc="Tokenising",
        )

    def _count_lost(self, documents: datasets.Dataset, tokens: datasets.Dataset) -> int:
        """Count the documents that decoding does not restore; a tokenizer trained here restores all."""
        if self.tokenizer is None or self.settings.tokenizer == "train":
            return 0
        pairs = zip(documents, tokens, strict=True)
        return sum(count_lost(self.tokenizer, [row["text"]], [ids["input_ids"][1:]]) for row, ids in pairs)

    def _parts(self, gathered: Gathered, split: str) -> list[np.ndarray]:
        """Return the documents of a split in one part, or for weighted training in one part per source."""
        weighted = [number for number, source in enumerate(self.settings.sources) if source.weight is not None]
        if split != "train" or not weighted:
            return [gathered.members(split)]
        return [gathered.members(split, source) for source in weighted]

    def _pack(
        self, tokens: datasets.Dataset, parts: list[np.ndarray], split: str, work: Path
    ) -> tuple[Packer, list[int]]:
        """Write the rows of a split, part after part; return the packer and the number of rows of each part."""
        length = self.settings.sequence_length
        packer = Packer(length)
        ends = [0]
        bar = tqdm(total=sum(map(len, parts)), desc=f"Packing {split}", unit=" documents", leave=False)

        def groups(members: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            chosen = tokens.select(members).with_format("arrow")
            for table in chosen.iter(batch_size=ENCODE_BATCH):
                column = table.column("input_ids").combine_chunks()
                yield column.flatten().to_numpy(), column.value_lengths().to_numpy()
                bar.update(len(table))

        def tables() -> Iterator[pyarrow.Table]:
            none = np.zeros(0, dtype=np.int32)
            yield _rows_table(PackedRows(none.reshape(0, length), none, none))
            for members in parts:
                for rows in packer.pack(groups(members)):
                    yield _rows_table(rows)
                ends.append(packer.rows)

        path = work / f"{split}.arrow"
        with bar:
            write_arrow(path, tables())
        _save(datasets.Dataset.from_file(str(path)), self.folder / "rows" / split)
        path.unlink()
        return packer, np.diff(ends).tolist()

    def _check_rows(self, splits: dict[str, Any]) -> None:
        # The test split is evaluated by documents, so it may be shorter than a row.
        for split in ("train", "valid"):
            about = splits[split]
            if about["documents"] and not about["rows"]:
                sample = ", or raise data.stream_sample" if self.settings.stream else ""
                raise DataError(
                    f"the {split} split has {about['tokens']} tokens, less than one row of "
                    f"{self.settings.sequence_length}; give more text, shorten sequence_length, or change "
                    f"valid_fraction{sample}"
                )
        if 0 in splits["train"].get("parts", []):
            source = self.settings.training_sources()[splits["train"]["parts"].index(0)]
            raise DataError(
                f"source {source.name!r} has a weight but less than one row of {self.settings.sequence_length} tokens; "
                "give it more text, or leave it out"
            )


@dataclass(frozen=True)
class Tokenise:
    """Maps a batch of gathered documents to their tokens. Picklable, for use in several processes."""

    tokenizer: PreTrainedTokenizerBase | None
    trained: bool

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Encode texts; ready-made ids are used as they are, with the beginning id prepended if missing."""
        rows = batch["input_ids"]
        if self.tokenizer is None:
            return {"input_ids": rows}
        begin = begin_id(self.tokenizer)
        plain = [number for number, ids in enumerate(rows) if ids is None]
        encoder = Encoder(self.tokenizer, cut=self.trained)
        encoded = iter(encoder([batch["text"][number] for number in plain]) if plain else [])
        return {
            "input_ids": [next(encoded) if ids is None else (ids if ids[0] == begin else [begin, *ids]) for ids in rows]
        }


def _save(dataset: datasets.Dataset, folder: Path) -> None:
    # Without a number of shards, datasets saves an empty dataset in a form that it cannot load.
    with hidden_bars():
        dataset.save_to_disk(str(folder), **({} if len(dataset) else {"num_shards": 1}))


def _token_counts(tokens: datasets.Dataset) -> np.ndarray:
    table = tokens.data.table.column("input_ids")
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in table.chunks]).astype(np.int64)


def _describe(gathered: Gathered, lengths: np.ndarray, split: str, packer: Packer) -> dict[str, Any]:
    inside = gathered.splits == SPLITS.index(split)
    domains = {}
    for code, name in enumerate(gathered.domain_names):
        chosen = inside & (gathered.domains == code)
        if chosen.any():
            domains[name] = _sums(gathered.sizes[chosen], lengths[chosen])
    sums = _sums(gathered.sizes[inside], lengths[inside])
    return {
        **sums,
        "rows": packer.rows,
        "sha256": packer.digest,
        "dropped_tokens": packer.dropped,
        "bytes_per_token": _ratio(sums["bytes"], sums["tokens"]),
        "domains": dict(sorted(domains.items())),
    }


def _sums(sizes: np.ndarray, lengths: np.ndarray) -> dict[str, int]:
    return {"documents": len(sizes), "bytes": int(sizes.sum()), "tokens": int(lengths.sum())}


def _ratio(size: int, tokens: int) -> float | None:
    return size / tokens if size and tokens else None


def _rows_table(rows: PackedRows) -> pyarrow.Table:
    length = rows.input_ids.shape[1]
    flat = pyarrow.array(rows.input_ids.reshape(-1), pyarrow.int32())
    offsets = np.concatenate([[0], np.cumsum(rows.counts)]).astype(np.int32)
    segments = pyarrow.array(rows.segments, pyarrow.int32())
    return pyarrow.table(
        {
            "input_ids": pyarrow.FixedSizeListArray.from_arrays(flat, length),
            "segments": pyarrow.ListArray.from_arrays(pyarrow.array(offsets), segments),
        }
    )

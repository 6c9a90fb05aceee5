"""Tokenise and pack text during training, for corpora that are larger than the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
from datasets.distributed import split_dataset_by_node

from mesalm.wording import plural

from .build import Tokenise
from .contamination import Contamination
from .corpora import SOURCES
from .data_settings import DataSettings
from .documents import DataError, Document, Faults, Source
from .gather import content_digest
from .prepared import Prepared, say
from .stream import Batch, DataPosition, SharedSteps, collate_tokens, picks

ENCODE_BATCH = 64
STEPS_AHEAD = 16
"""Steps to read ahead: rows arrive in bursts of `ENCODE_BATCH` documents, and the buffer hides slow sources."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class StreamPosition(DataPosition):
    """The position of process ``rank`` of ``world``: the rows read by all, and a position for each source.

    The latter has the ``passes`` through the source, the state of its `datasets.IterableDataset` before the next
    document, and the number of tokens of that document already ``used``.
    """

    rank: int
    world: int
    rows: int
    places: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingText:
    """Tokenises batches of texts, dropping those that are empty, contaminated or in ``held_out`` by their digest."""

    tokenise: Tokenise
    held_out: set[bytes]
    contamination: Contamination | None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the tokens of the texts that are trained on."""
        texts = [text for text in batch["text"] if text and self._is_new(text)]
        return self.tokenise({"text": texts, "input_ids": [None] * len(texts)})

    def _is_new(self, text: str) -> bool:
        contaminated = self.contamination is not None and self.contamination.holds(text)
        return not contaminated and content_digest(Document("", "", text)) not in self.held_out


class SourceRows:
    """An endless stream of the rows of one source for process ``rank`` of ``world``.

    ``encode`` tokenises texts and drops those that are not for training. `datasets` gives each process
    its own shards if their number is a multiple of ``world``, otherwise every world-th document.
    """

    def __init__(
        self, source: Source, encode: TrainingText, length: int, faults: Faults, *, rank: int = 0, world: int = 1
    ) -> None:
        self.length = length
        self._documents = _encoded(source, encode, faults, rank, world)
        self.place = {"passes": 0, "documents": None, "used": 0}

    @property
    def place(self) -> dict[str, Any]:
        """The place of the next row; setting it moves there."""
        return {"passes": self._passes, "documents": self._before, "used": self._used}

    @place.setter
    def place(self, place: Mapping[str, Any]) -> None:
        self._passes, self._before, self._used = place["passes"], place["documents"], place["used"]
        self._documents.set_epoch(self._passes)
        self._documents.load_state_dict(self._before)
        self._iterator: Iterator[dict[str, Any]] = iter(self._documents)
        self._fresh = self._used == 0
        self._document: list[int] = [] if self._fresh else next(self._iterator)["input_ids"]

    def take(self) -> dict[str, list[int]]:
        """Return the next row: input_ids (``length`` of them) and the lengths of its segments.

        Raises DataError if the source has no text for this process.
        """
        row: dict[str, list[int]] = {"input_ids": [], "segments": []}
        while missing := self.length - len(row["input_ids"]):
            if self._used == len(self._document):
                self._next_document()
            piece = self._document[self._used : self._used + missing]
            self._used += len(piece)
            row["input_ids"] += piece
            row["segments"].append(len(piece))
        return row

    def _next_document(self) -> None:
        for _ in range(2):
            if not self._fresh:
                self._before = self._documents.state_dict()
            document = next(self._iterator, None)
            if document is not None:
                self._document, self._used, self._fresh = document["input_ids"], 0, False
                return
            self.place = {"passes": self._passes + 1, "documents": None, "used": 0}
        raise DataError(
            "a streamed source has no text to train on, or fewer documents than there are processes; add text"
        )


class TextStream(SharedSteps):
    """An endless stream of one process's micro-batches, like `mesalm.data.stream.RowStream` but from text.

    ``parts`` are the rows of each source. Each step takes ``global_rows`` of them by ``weights``, as `picks` says, a
    consecutive share for each process. A thread reads up to ``STEPS_AHEAD`` steps ahead until the iterator is closed.
    ``position`` is that of the first step not completely returned; a new ``iter`` starts there. Assigning the position
    of another number of processes raises ValueError.
    """

    def __init__(
        self,
        parts: Sequence[SourceRows],
        weights: Sequence[float],
        global_rows: int,
        *,
        rank: int = 0,
        world: int = 1,
        micro_rows: int,
    ) -> None:
        super().__init__(global_rows, rank, world, micro_rows)
        self.parts = parts
        self.weights = weights
        self._position = self._here(0)

    def _here(self, rows: int) -> StreamPosition:
        return StreamPosition(self.rank, self.world, rows, [part.place for part in self.parts])

    @property
    def position(self) -> StreamPosition:
        """Where the next step begins."""
        return self._position

    @position.setter
    def position(self, position: StreamPosition) -> None:
        if (position.rank, position.world) != (self.rank, self.world):
            raise ValueError(
                f"the stream was read by {plural(position.world, 'process')}; resume with the same number of processes"
            )
        self._position = position

    def __iter__(self) -> Generator[Batch]:
        count = STEPS_AHEAD * self.micro_batches
        with closing(_read_ahead(self._read(self._position), count)) as batches:
            for batch, self._position in batches:
                yield batch

    def _read(self, position: StreamPosition) -> Iterator[tuple[Batch, StreamPosition]]:
        """Yield each micro-batch from ``position`` on, and the position when it has been handed out."""
        for part, place in zip(self.parts, position.places, strict=True):
            part.place = place
        share = self.global_rows // self.world
        while True:
            chosen, _ = picks(self.weights, position.rows + self.rank * share, share)
            for begin in range(0, share, self.micro_rows):
                rows = [self.parts[part].take() for part in chosen[begin : begin + self.micro_rows]]
                if begin + self.micro_rows == share:
                    position = self._here(position.rows + self.global_rows)
                yield collate_tokens(rows), position


def _read_ahead(items: Iterator[Item], count: int) -> Generator[Item]:
    """Yield endless ``items``; a thread makes up to ``count`` of them before they are asked for.

    An error in ``items`` is raised at its place. Closing waits for the item in the making.
    """
    reader = ThreadPoolExecutor(1, "reader")
    try:
        ahead = deque(reader.submit(next, items) for _ in range(count))
        while True:
            ahead.append(reader.submit(next, items))
            yield ahead.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)


def _encoded(source: Source, encode: TrainingText, faults: Faults, rank: int, world: int) -> datasets.IterableDataset:
    """Return the tokens of a source's documents as a dataset whose state can be saved."""
    documents = datasets.IterableDataset.from_generator(
        _texts,
        features=datasets.Features(text=datasets.Value("string")),
        gen_kwargs={"parts": source.shards(), "faults": faults},
    )
    return split_dataset_by_node(documents, rank, world).map(
        encode,
        batched=True,
        batch_size=ENCODE_BATCH,
        remove_columns=["text"],
        features=datasets.Features(input_ids=datasets.List(datasets.Value("int32"))),
    )


def _texts(parts: list[Source], faults: Faults) -> Iterator[dict[str, Any]]:
    for part in parts:
        before = faults.count
        for document in part.documents(faults):
            yield {"text": document.text}
        if faults.count > before:
            say(f"skipped {plural(faults.count - before, 'bad record')} of the stream, such as {faults.examples[-1]}")


def text_stream(
    settings: DataSettings, prepared: Prepared, global_rows: int, *, rank: int = 0, world: int = 1, micro_rows: int
) -> TextStream:
    """Return the stream of the training sources of ``settings``, without held-out documents.

    ``prepared`` is the folder of their sample. Raises DataError for sources that cannot be read.
    """
    held_out = {
        content_digest(Document("", "", text))
        for split in ("valid", "test")
        for text in prepared.documents(split)["text"]
    }
    trained = prepared.manifest["tokenizer"]["kind"] == "trained"
    contamination = Contamination(settings.decontaminate) if settings.decontaminate else None
    encode = TrainingText(Tokenise(prepared.tokenizer(), trained), held_out, contamination)
    faults = Faults(settings.skip_bad, "; or set data.skip_bad=true to skip it")
    training = settings.training_sources()
    parts = [
        SourceRows(SOURCES[source.name](source), encode, prepared.sequence_length, faults, rank=rank, world=world)
        for source in training
    ]
    weights = [source.weight or 1.0 for source in training]
    return TextStream(parts, weights, global_rows, rank=rank, world=world, micro_rows=micro_rows)

"""Rows of tokens for fitting new layers: from files, or sampled from the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mesalm.data.documents import Faults
from mesalm.data.read_files import FileSource
from mesalm.data.source_settings import SourceSettings

ROWS_AT_ONCE = 16


def text_rows(
    files: Sequence[str], tokenizer: PreTrainedTokenizerBase, count: int, length: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return up to `count` rows of `length` tokens, [N, T], and the files' names and hashes.

    Documents are packed end to end, each preceded by the start token, and read only as far as needed.

    Raises:
        ValueError: a file cannot be read, or there is less text than four rows.
    """
    source = FileSource(SourceSettings.build({"name": "files", "files": list(files)}))
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids: list[int] = []
    for document in source.documents(Faults()):
        ids += [] if begin is None else [begin]
        # enough characters for all rows; of a huge file only the beginning is encoded
        text = (document.text or "")[: 32 * count * length]
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= count * length:
            break
    found = min(count, len(ids) // length)
    if found < 4:
        raise ValueError(
            f"{', '.join(files)}: {len(ids)} tokens are too few to fit the layers to; give at least {4 * length}"
        )
    return torch.tensor(ids[: found * length]).view(found, length), {"name": "files", **source.identity()}


def own_rows(model: Any, count: int, length: int, *, quiet: bool = False) -> Tensor:
    """Return `count` rows of `length` tokens that the model samples at temperature 1, [N, T].

    Rows begin with the start token, or with random tokens if there is none. The samples depend on torch's random
    state.
    """
    config = model.config
    begin = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    begin = begin[0] if isinstance(begin, list) else begin
    rows = []
    parts = torch.arange(count).split(ROWS_AT_ONCE)
    for part in tqdm(parts, desc="write text to fit to", disable=True if quiet else None):
        start = torch.randint(config.vocab_size, (len(part), 1))
        if begin is not None:
            start.fill_(begin)
        rows.append(
            model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                min_new_tokens=length - 1,
                max_new_tokens=length - 1,
                pad_token_id=0,
            )
        )
    return torch.cat(rows)

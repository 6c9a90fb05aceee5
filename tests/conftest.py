"""Compute in one thread, and import Triton first of all, for its interpreter where there is no card.

The tests' tensors are so small that threads cost more than they save, and what a small model has learnt depends on
their number; processes that tests start inherit it.

Triton decides when it is imported whether its own library runs in the interpreter, and other libraries import it too,
so whichever came first would decide for the tests of the kernels. The variable itself is gone again afterwards.

Signals have their usual effect, also where the tests run in the background or under nohup, which ignore some. What is
printed depends on no terminal: variables that feign one, or its size, are removed.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parent))  # for tiny.py and others; importlib mode leaves the folder off the path

for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

for number, effect in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, effect)

with pytest.MonkeyPatch.context() as early:
    if not torch.cuda.is_available():
        early.setenv("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:  # a dependency on Linux only
        importlib.import_module("triton.language")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes, 258 words with the two special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<|pad|>": 0, "<|endoftext|>": 1} | {letter: index + 2 for index, letter in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(words, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )

"""Small models and a tokenizer that the tests of this folder share; importlib mode leaves the folder off the path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import SPECIAL, draw_tokens, tiny_model
from transformers import PreTrainedTokenizerFast

from mesalm import MesaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

KINDS = {"mesa": "mesa", "hybrid": ["mesa", "softmax"], "linear": "linear", "softmax": "softmax"}


def small(kind: str = "hybrid", model_class: type = MesaForCausalLM, **changes: object) -> MesaForCausalLM:
    """Return a small model in evaluation mode whose every parameter matters."""
    return tiny_model(model_class, **{"mixers": KINDS[kind], **SPECIAL, **changes})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name each of the four kinds of model in turn."""
    return request.param


@pytest.fixture
def build() -> Callable[..., MesaForCausalLM]:
    """Return `small`, which makes a model."""
    return small


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """Return `draw_tokens`."""
    return draw_tokens


@pytest.fixture
def tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the tokenizer of single bytes, padding left."""
    tokenizer.padding_side = "left"
    return tokenizer

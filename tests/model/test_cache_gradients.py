"""Check gradients through a cache: reading a text in pieces gives those of reading it at once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from mesalm.model.cache_mesa import MesaCache
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM

CACHES: dict[str, Callable[[MesaConfig], Cache]] = {
    "mesa": lambda config: MesaCache(config=config),
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=128),
}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def make_model(mixers: str | list[str], **options: object) -> MesaForCausalLM:
    model = tiny_model(mixers=mixers, initializer_range=0.02, tolerance=1e-12, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def score(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1).square().sum()


def tokens(length: int) -> Tensor:
    return torch.randint(0, 16, (2, length), generator=torch.Generator().manual_seed(1))


def embedded(model: MesaForCausalLM, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids).detach().requires_grad_()


def weights(model: MesaForCausalLM) -> list[Tensor]:
    return [x for name, x in model.named_parameters() if "embed" not in name]


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm()) <= 5e-6 * float(b.norm())  # the gates are float32


COMBINATIONS = [
    ("mesa", None, "mesa"),
    ("mesa", 0, "dynamic"),
    ("mesa", None, "static"),
    ("linear", None, "dynamic"),
    ("linear", 0, "static"),
    (["mesa", "softmax"], None, "mesa"),
    (["softmax", "linear"], 0, "dynamic"),
]


@pytest.mark.parametrize(("mixers", "conv_size", "kind"), COMBINATIONS)
def test_pieces_have_the_gradients_of_one_pass(mixers: str | list[str], conv_size: int | None, kind: str) -> None:
    model = make_model(mixers, conv_size=conv_size)
    read = embedded(model, tokens(75))
    leaves = [read, *weights(model)]
    wanted = torch.autograd.grad(score(model(inputs_embeds=read, use_cache=False).logits), leaves)
    cache, total = CACHES[kind](model.config), 0.0
    for piece in read.split([70, 3, 1, 1], dim=1):
        total = total + score(model(inputs_embeds=piece, past_key_values=cache, use_cache=True).logits)
    assert_same(torch.autograd.grad(total, leaves), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("mixers", "conv_size", "kind"), COMBINATIONS)
def test_training_behind_a_cached_prefix(mixers: str | list[str], conv_size: int | None, kind: str, mode: str) -> None:
    model = make_model(mixers, conv_size=conv_size)
    prefix, rest = tokens(14).split([6, 8], dim=1)
    with MODES[mode]():
        cache = CACHES[kind](model.config)
        model(prefix, past_key_values=cache, use_cache=True)

    def loss(past: Cache) -> Tensor:
        return score(model(rest, past_key_values=past, use_cache=True).logits)

    start = copy.deepcopy(cache)
    value = loss(cache)
    with torch.no_grad():  # reading on before the backward pass changes nothing that it needs
        loss(cache)
    gradients = torch.autograd.grad(value, weights(model))
    # a direction in which nothing cancels
    direction = [torch.where(g < 0, -1.0, 1.0) * torch.rand_like(g) for g in gradients]

    @torch.no_grad()
    def moved(step: float) -> Tensor:
        for x, d in zip(weights(model), direction, strict=True):
            x.add_(d, alpha=step)
        return loss(copy.deepcopy(start))

    wanted = (moved(1e-5) - moved(-2e-5)) / 2e-5
    got = sum((d * g).sum() for d, g in zip(direction, gradients, strict=True))
    assert float(abs(got - wanted)) <= 2e-3 * float(abs(wanted))


def test_truncated_backpropagation() -> None:
    """Detached states stop the gradient, and nothing else: the pieces' own gradients add up."""
    model = make_model("mesa")
    read = embedded(model, tokens(60))
    cache = MesaCache(config=model.config)
    for start, piece in zip((0, 20, 40), read.split(20, dim=1), strict=True):
        loss = score(model(inputs_embeds=piece, past_key_values=cache, use_cache=True).logits)
        (got,) = torch.autograd.grad(loss, read)
        assert not got[:, :start].any()
        assert got[:, start : start + 20].any()
        for layer in cache.layers:
            for held in (layer.conv_states, layer.recurrent_states):
                held[0] = held[0].detach()

"""Train through torch.compile, whole and by blocks: the same numbers, one graph each, nothing compiled twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from mesalm import MesaForCausalLM
from mesalm.model.layers import ShortConvolution
from mesalm.model.mixer_gated import convolve
from mesalm.train.step import compiled

LAYERS = 4


def make_model(mixers: list[str]) -> MesaForCausalLM:
    return tiny_model(vocab_size=64, num_hidden_layers=LAYERS, mixers=mixers, initializer_range=0.02).train()


def train(model: Any, weights: list[torch.nn.Parameter], steps: int) -> list[torch.Tensor]:
    """Make steps on rows of two documents that end elsewhere in every step; give losses and the last gradients."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD(weights, lr=0.1)
    made = []
    for step in range(steps):
        ids = torch.randint(0, 64, (2, 24), generator=generator)
        positions = torch.cat((torch.arange(8 + step), torch.arange(16 - step))).expand(2, -1)
        optimiser.zero_grad()
        loss = model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        made.append(loss.detach())
    return [*made, *(weight.grad for weight in weights if weight.grad is not None)]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace graphs, forwards and backwards, without the time that code for them takes."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


# torch hides this warning of its own, but not where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("how", "mixers"),
    [
        ("blocks", ["mesa", "softmax"] * (LAYERS // 2)),
        pytest.param(True, ["linear", "mesa", "softmax", "delta"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_training_is_eager_training(how: Any, mixers: list[str], traced: None) -> None:
    eager = make_model(mixers)
    wanted = train(eager, list(eager.parameters()), 4)
    model = make_model(mixers)
    made = compiled(model, how)
    weights = list(model.parameters())
    assert {id(weight) for weight in made.parameters()} == {id(weight) for weight in weights}
    begun = train(made, weights, 2)
    graphs = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    around = 4  # embeddings, rotary positions, the last norm, the head
    assert graphs == (1 if how is True else len(set(mixers)) + around)
    again = make_model(mixers)
    model.load_state_dict(again.state_dict())
    got = train(made, weights, 4)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    for mine, theirs in zip([*begun[:2], *got], [*wanted[:2], *wanted], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


# inductor imports a module of torch that uses what torch has deprecated
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_convolution_and_norm_become_one_kernel_each_way(packed: bool) -> None:
    torch._dynamo.reset()
    conv = ShortConvolution(64, 4)
    segments = torch.arange(2 * 96).view(2, 96) // 40 if packed else None

    def glue(inputs: torch.Tensor) -> torch.Tensor:
        both = convolve(conv, inputs, None, segments, None, 0).view(2, 96, 4, 16)
        return torch.nn.functional.normalize(both.float(), dim=-1, eps=1e-6).to(both.dtype)

    inputs = torch.randn(2, 96, 64, dtype=torch.bfloat16, requires_grad=True)
    _, codes = run_and_get_code(lambda: torch.compile(glue)(inputs).sum().backward())
    assert len(codes) == 2
    for code in codes:
        assert code.count("= async_compile.") == 1
        assert "extern_kernels." not in code.partition("def call(")[2]


def test_blocks_of_a_sharded_model_are_compiled_in_place(traced: None) -> None:
    model = tiny_model(mixers=["mesa", "softmax"])
    assert compiled(model, "blocks", sharded=True) is model
    assert all(hasattr(block.forward, "_torchdynamo_orig_callable") for block in model.model.layers)

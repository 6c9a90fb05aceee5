"""The operator and the model on every device of this machine: the CPU, and a CUDA card where there is one."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from mesalm import mesa_attention

CPU = pytest.param("cpu", marks=pytest.mark.slow)  # other tests are of the CPU too
DEVICES = [CPU, *([pytest.param("cuda", marks=pytest.mark.card)] if torch.cuda.is_available() else [])]
# bfloat16 keeps 8 bits of query, key and value, which the solve can magnify by the condition number (about 10 here)
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 3e-2}


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 150, 3, 32)
    query, key = (torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(2))
    value = torch.randn(shape, generator=generator)
    log_forget = torch.nn.functional.logsigmoid(4 + torch.randn(shape[:3], generator=generator))
    log_forget[:, 70] = -torch.inf
    gate = torch.rand(shape[:3], generator=generator)
    return [query.to(dtype), key.to(dtype), value.to(dtype), log_forget, gate]


def outcome(tensors: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
    """Return output and gradients, on the CPU in float64."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = mesa_attention(*leaves, ridge=0.5, **options)
    (output.double() * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)).sum().backward()
    return [tensor.detach().double().cpu() for tensor in (output, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_is_exact_on_every_device(device: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    expected = outcome([tensor.double() for tensor in tensors], backend="exact")
    found = outcome([tensor.to(device) for tensor in tensors])
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).norm() / exact.norm() < TOLERANCES[dtype]


@pytest.mark.parametrize("mixers", ["mesa", "linear", "softmax"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_model_learns_and_generates_on_every_device(device: str, mixers: str) -> None:
    model = tiny_model(vocab_size=64, mixers=mixers).train().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = torch.randint(0, 64, (2, 80), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.cat((torch.arange(30), torch.arange(50)))[None].expand(2, -1).to(device)
    losses = []
    for _ in range(12):
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(ids, position_ids=positions, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    cached = model.generate(ids[:, :7], max_new_tokens=6, do_sample=False, pad_token_id=0)
    plain = model.generate(ids[:, :7], max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("mixers", ["mesa", "linear", "delta", "kalman", "window"])
def test_shapes_without_memory(mixers: str) -> None:
    """On meta, where shapes and operations are found before there is memory, as transformers' own models are."""
    model = tiny_model(vocab_size=64, mixers=mixers).train().to("meta")
    for length in (1, 5, 70):
        ids = torch.zeros(2, length, dtype=torch.int64, device="meta")
        output = model(ids, labels=ids, use_cache=True)
        assert output.logits.shape == (2, length, 64)
        output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters())

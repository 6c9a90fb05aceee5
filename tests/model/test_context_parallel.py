"""Rows that several processes share, against the same rows read by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mesalm.model.context_parallel import Shard, leave_behind
from mesalm.model.mixers import MIXERS
from mesalm.model.model_inputs import find_shard
from mesalm.model.operator_linear import linear_attention

HYBRIDS = [
    {"mixers": [*MIXERS][first::2], "num_hidden_layers": 3, "num_key_value_heads": 1, "conv_size": 4}
    for first in (0, 1)
]
CASES = [
    *({"mixers": name, "conv_size": size} for name in MIXERS for size in (0, 4)),
    *HYBRIDS,
    {"mixers": "mesa", "gates": False, "conv_size": 0},
    {"mixers": ["mesa", "linear"], "dpfp": 2},
    {"mixers": ["softmax", "mesa"], "attn_implementation": "eager"},
    {"mixers": "mesa", "mesa_backend": "exact"},
]


class Traffic(TorchDispatchMode):
    """The bytes of every tensor that this process hands to an exchange or gets from one."""

    moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def rows(length: int, packed: bool) -> dict[str, torch.Tensor]:
    """Return two rows, of documents that begin beside and across the borders of shards, some tokens unscored."""
    ids = torch.randint(2, 61, (2, length), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][:, 50:60] = -100
    if packed:
        positions = torch.arange(length).repeat(2, 1)
        for row, starts in enumerate(((0, 37, 80, 81, 130), (0, 79, 122))):
            for start in starts:
                positions[row, start:] = torch.arange(len(positions[row, start:]))
        batch["position_ids"] = positions
    return batch


def losses_and_gradients(model: Any, batch: dict[str, Any], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    output = model(**batch, **options)
    output.loss.backward()
    return output, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def compare(case: dict[str, Any], batch: dict[str, Any], checkpointed: bool = False) -> None:
    """Compare this process's logits, and the mean of all losses and gradients, with those of one process."""
    model, (rank, size) = tiny_model(**case), (dist.get_rank(), dist.get_world_size())
    whole, expected = losses_and_gradients(model, batch)
    if checkpointed:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    part, found = losses_and_gradients(model, batch, context=dist.group.WORLD)
    # a dense solve in float32 is as far from float64, 4e-6 of the largest logit
    torch.testing.assert_close(
        part.logits, whole.logits.chunk(size, dim=1)[rank], atol=1e-5 * float(whole.logits.detach().max()), rtol=1e-5
    )
    for mean, wanted in [(part.loss.detach(), whole.loss.detach()), *((found[name], expected[name]) for name in found)]:
        dist.all_reduce(mean)
        error = float((mean / size - wanted).norm() / wanted.norm())
        # kalman's systems have condition numbers up to 51, and float32 that many fewer digits
        assert error < (1e-4 if "kalman" in case.get("mixers", ()) else 1e-5), (case, error)


def count(case: dict[str, Any], length: int) -> int:
    """Return the bytes that one process exchanges for a row of this length, forward and backward."""
    model = tiny_model(**case).train()
    with Traffic() as traffic:
        model(**rows(length, packed=False), context=dist.group.WORLD).loss.backward()
    return traffic.moved


class InOneProcess(Shard):
    """A shard whose exchange is with what others of its kind have noted."""

    def _gather(self, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.group[self.rank] = own
        return tuple(self.group)


def test_states_before_four_shards_are_those_of_the_operator() -> None:
    generator = torch.Generator().manual_seed(5)
    key, written, gates = (torch.randn(2, 80, 2, size, generator=generator).double() for size in (6, 5, 2))
    log_forget, input_gate = torch.nn.functional.logsigmoid(gates + 3).unbind(-1)
    log_forget[0, 50] = -torch.inf  # a document begins in the third shard
    operands = key, written, log_forget, input_gate.exp()
    shards = [InOneProcess([None] * 4, rank, 4, 20) for rank in range(4)]
    noted = [leave_behind(*(x[:, each.begin : each.begin + 20] for x in operands)) for each in shards]
    for shard in shards:
        shard.group[:] = [torch.cat((state.flatten(2), decay.flatten(2)), dim=-1) for state, decay in noted]
        found = shard.state_before(*noted[shard.rank])
        before = [x[:, : shard.begin] for x in operands]
        _, state = linear_attention(before[0], *before, return_state=True, backend="exact")
        torch.testing.assert_close(found, state, atol=1e-12, rtol=1e-12)


def test_autocast_does_not_round_the_states_between_shards() -> None:
    own, transition = torch.randn(2, 4, 1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    parts = [torch.cat((a.flatten(2), b.flatten(2)), dim=-1) for a, b in zip(own, transition, strict=True)]
    shard = InOneProcess(parts, 3, 4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = shard.state_before(own[3], transition[3])
    assert torch.equal(found, shard.state_before(own[3], transition[3]))


def test_angles_that_depend_on_the_last_position_are_those_of_the_whole_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):  # noqa: N818
        pass

    def stop(_: Any, __: Any, given: dict[str, Any]) -> None:
        raise Reached(given["position_embeddings"])

    def build() -> Any:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        return tiny_model(mixers="softmax", rope_parameters=rope, max_position_embeddings=16).model

    whole = build().rotary_emb(torch.zeros(1, 1, 1), torch.arange(64)[None])
    model, shard = build(), InOneProcess([None, None], 0, 2, 32)
    model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    monkeypatch.setattr("mesalm.model.modeling_mesa.find_shard", lambda *_: shard)
    with pytest.raises(Reached) as caught:
        model(torch.zeros(1, 64, dtype=torch.long), context=dist.group.WORLD)
    for angles, wanted in zip(caught.value.args[0], whole, strict=True):
        torch.testing.assert_close(angles, wanted[:, :32])


def join(rank: int, size: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)


def quick(rank: int, size: int, file: str) -> None:
    join(rank, size, file)
    for case in HYBRIDS:
        compare(case, rows(160, packed=True))
    for name, columns, transition in (("mesa", 16 + 16, 1), ("linear", 16, 1), ("delta", 16, 16 * 16)):
        case = {"mixers": name, "num_hidden_layers": 1, "conv_size": 4}
        state, halo = 2 * (16 * columns + transition), 3 * (2 + 2) * 16  # two key heads of size 16
        # two rows of 4 bytes a number; own part and all parts; once forward and once backward
        assert count(case, 64) == count(case, 192) == 2 * 4 * (1 + size) * (state + halo) * 2
    assert count({"mixers": "softmax"}, 192) == 3 * count({"mixers": "softmax"}, 64)
    dist.destroy_process_group()


def thorough(rank: int, size: int, file: str) -> None:
    join(rank, size, file)
    for case in CASES:
        for packed in (True, False):
            compare(case, rows(160, packed))
    for case in HYBRIDS:
        compare(case, rows(160, packed=True), checkpointed=True)
    # shards of two tokens, fewer than the convolution reads; without gates, whose gradients would be next to nothing
    compare({"mixers": ["softmax", "linear"], "gates": False, "conv_size": 4}, rows(2 * size, packed=False))
    model = tiny_model().bfloat16()
    assert model(**rows(160, packed=True), context=dist.group.WORLD).loss.isfinite()
    with pytest.raises(ValueError, match="rows of 161 tokens do not divide evenly"):
        model(**rows(161, packed=True), context=dist.group.WORLD)
    dist.destroy_process_group()


def spawn(program: Any, size: int, folder: Path) -> None:
    torch.multiprocessing.start_processes(program, (size, str(folder / "rendezvous")), size, start_method="fork")


def test_two_processes_read_as_one_and_exchange_no_more_for_longer_rows(tmp_path: Path) -> None:
    spawn(quick, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_mixer_reads_rows_in_shards_as_one_process_reads_them(size: int, tmp_path: Path) -> None:
    spawn(thorough, size, tmp_path)


@pytest.mark.parametrize(
    ("mask", "cache", "training", "words"),
    [
        (torch.ones(2, 8), None, False, "do not support attention_mask"),
        (None, object(), False, "cannot continue from a cache"),
        (None, None, True, "set attention_dropout=0"),
    ],
)
def test_what_shared_rows_cannot_have_is_refused(mask: Any, cache: Any, training: bool, words: str) -> None:
    config = tiny_config(mixers="softmax", attention_dropout=0.1)
    with pytest.raises(ValueError, match=words) as caught:
        find_shard(object(), config, 8, mask, cache, training)
    assert "\n" not in str(caught.value)

"""The model that reads a sequence back from its last state sees that state alone, and learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from mesalm.synthetic.compression_mesa import MesaForCompression


def small(mixers: str) -> MesaForCompression:
    sizes = {"vocab_size": 5, "num_hidden_layers": 1, "max_position_embeddings": 6}
    return tiny_model(MesaForCompression, **sizes, mixers=mixers)


@pytest.mark.parametrize("mixers", ["mesa", "softmax", "linear"])
def test_nothing_but_the_last_state_reaches_the_logits(mixers: str) -> None:
    model = small(mixers)
    ids = torch.tensor([[0, 1, 2, 3, 0, 4], [3, 3, 1, 0, 2, 4]])
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state.detach().requires_grad_()
    model.model.forward = lambda **_: type("Output", (), {"last_hidden_state": states})()
    model(ids).logits.sum().backward()
    assert states.grad[:, :-1].abs().max() == 0
    assert states.grad[:, -1].abs().min() > 0


def test_the_loss_is_that_of_unshifted_labels_and_can_be_learnt() -> None:
    model = small("mesa")
    ids = torch.tensor([[0, 1, 2, 3, 0, 4], [3, 3, 1, 0, 2, 4]])
    labels = ids.clone()
    labels[:, -1] = -100
    output = model(ids, labels=labels)
    chances = output.logits.log_softmax(-1)
    by_hand = -chances[:, :-1].gather(-1, ids[:, :-1, None]).mean()
    torch.testing.assert_close(output.loss, by_hand, rtol=1e-5, atol=1e-6)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimiser.step()
    assert (model(ids).logits.argmax(-1)[:, :-1] == ids[:, :-1]).all()


def test_it_is_saved_and_opened(tmp_path: Path) -> None:
    model = small("mesa")
    model.save_pretrained(tmp_path)
    again = MesaForCompression.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[0, 1, 2, 3, 0, 4]])
    assert torch.equal(again(ids).logits, model(ids).logits)

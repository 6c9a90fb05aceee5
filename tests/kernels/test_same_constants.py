"""Check that both back ends take the same operands and the same constants, which neither package imports."""

from __future__ import annotations

import torch

from mesa_kernels import conjugate_gradients, launch, tiles
from mesalm.model import chunk_states, mesa_cg
from mesalm.model.operator_records import Operands


def test_operands_are_the_same() -> None:
    assert launch.Call._fields == Operands._fields


def test_constants_are_the_same() -> None:
    assert tiles.CHUNK == chunk_states.CHUNK
    assert chunk_states.gate_floor(torch.float32) == tiles.FLOOR
    assert conjugate_gradients.REFINEMENTS == mesa_cg.REFINEMENTS

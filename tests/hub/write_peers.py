"""Write small random checkpoints of flash-linear-attention with its own logits; needs that package.

    TRITON_INTERPRET=1 PEER/bin/python tests/hub/write_peers.py tests/hub/peers

This file runs in the peer's environment and imports nothing of this project. Each folder holds a checkpoint and, in
`reference.safetensors`, token ids and logits. Triton's interpreter runs the peer's model on a CPU, but not the kernels
of its operators (release 0.6.0, Triton 3.9), in whose place its own plain references stand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fla.layers.gated_deltanet as deltanet
import fla.layers.mesa_net as mesanet
import torch
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, MesaNetConfig, MesaNetForCausalLM
from fla.modules.l2norm import l2_norm
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.mesa_net.naive import naive_mesa_net_exact
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import softplus
from triton.runtime.autotuner import Autotuner

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "initializer_range": 0.3,
    "norm_eps": 1e-5,
    "conv_size": 3,
}


def mesa(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor, **_: Any) -> tuple[Tensor, ...]:
    """Stand for the peer's chunked operator: its exact reference."""
    output, gram, cross = naive_mesa_net_exact(l2_norm(q), l2_norm(k), v, g, lamb, beta)
    return output, gram, cross


def delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, **_: Any
) -> tuple[Tensor, Tensor | None]:
    """Stand for the peer's operators: its reference, with the gates that they make inside."""
    log_forget = -A_log.exp() * softplus(g.float() + dt_bias)
    output: Tensor = naive_recurrent_gated_delta_rule(l2_norm(q), l2_norm(k), v, beta.sigmoid(), log_forget)[0]
    return output, None


def first_configuration(self: Autotuner, *arguments: Any, **keywords: Any) -> Any:
    """Run a kernel without timing its configurations, which takes a card."""
    self.configs = self.configs[:1]
    return run(self, *arguments, **keywords)


run, Autotuner.run = Autotuner.run, first_configuration
mesanet.chunk_mesa_net = mesa
deltanet.chunk_gated_delta_rule = deltanet.fused_recurrent_gated_delta_rule = delta


def write(folder: Path, model: torch.nn.Module) -> None:
    """Give every vector of a model random numbers, save it and what it computes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
        ids = torch.randint(0, SIZES["vocab_size"], (2, 70))
        logits = model.eval()(ids, use_cache=False).logits
    model.save_pretrained(folder)
    save_file({"ids": ids, "logits": logits}, folder / "reference.safetensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    write(Path(sys.argv[1]) / "mesa_net", MesaNetForCausalLM(MesaNetConfig(**SIZES)))
    write(Path(sys.argv[1]) / "gated_deltanet", GatedDeltaNetForCausalLM(GatedDeltaNetConfig(**SIZES)))

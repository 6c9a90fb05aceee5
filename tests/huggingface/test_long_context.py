"""Memory does not grow with the context: 64k tokens through models without softmax layers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny import TINY

# a process of its own, whose peak is that of this run alone; each context is read in pieces, then written on from
READ = """
import json, resource, sys
import torch
from mesalm import MesaConfig, MesaForCausalLM
from mesalm.model.cache_mesa import CACHE
from transformers import DynamicCache
torch.manual_seed(0)
model = MesaForCausalLM(MesaConfig(vocab_size=64, **json.loads(sys.argv[2]), mixers=sys.argv[1], pad_token_id=0)).eval()
tokens = torch.randint(2, 64, (1, 65536), generator=torch.Generator().manual_seed(1))
def size(cache):
    held = [part for layer in cache.layers for value in vars(layer).values()
            for part in (value.values() if isinstance(value, dict) else [value])]
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor))
for length in (2048, 4096, 65536):
    cache = DynamicCache(config=model.config)
    model.generate(tokens[:, :length], **{CACHE: cache}, prefill_chunk_size=1024, max_new_tokens=4,
                   min_new_tokens=4, do_sample=False)
    print(length, size(cache), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mixer", ["mesa", "linear", "softmax"])
def test_64k_tokens_need_the_memory_of_4k(mixer: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, mixer, json.dumps(TINY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [[int(word) for word in line.split()] for line in result.stdout.splitlines()[-3:]]
    assert [length for length, _, _ in rows] == [2048, 4096, 65536]
    sizes, peaks = [size for _, size, _ in rows], [peak for _, _, peak in rows]

    if mixer == "softmax":
        # the twin's keys and values grow, which shows that this test sees growth
        assert sizes[2] > 15 * sizes[1]
        return
    assert sizes[0] == sizes[1] == sizes[2]
    # 61,440 more ids, masks and positions, 8 bytes each; 16 MiB is far below the 64 MiB of the twin
    assert peaks[2] - peaks[1] < 16 * 1024  # KiB

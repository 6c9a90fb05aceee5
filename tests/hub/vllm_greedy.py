"""Let vLLM's engine write greedily with a small model, on a CPU, and print what it and `generate` wrote, as JSON.

    python tests/hub/vllm_greedy.py FOLDER mesa softmax

vLLM's compiled library need not be there: what the engine asks of it is done in torch here.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}

import itertools

import torch
import vllm._custom_ops as compiled
from tiny import TINY
from vllm import LLM, SamplingParams

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.hub.vllm_plugin import register

LENGTHS = (5, 40, 17, 60, 33, 1)  # the last begin in pages that others have left
NEW = 12


def place(starts: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, slots: torch.Tensor, size: int) -> None:
    """Write where the key and value of each token [T] go: its request's page for its position, and the place in it."""
    for request, (first, end) in enumerate(itertools.pairwise(starts.tolist())):
        at = positions[first:end]
        slots[first:end] = table[request, at // size] * size + at % size


def keep(key: torch.Tensor, value: torch.Tensor, *kept: Any, **_: Any) -> None:
    """Write keys and values [T, G, K] to their slots of pages [pages, G, tokens, K]."""
    keys, values, slots, *_ = kept
    size = keys.shape[2]
    slots = slots[: len(key)].long()
    keys[slots // size, :, slots % size] = key
    values[slots // size, :, slots % size] = value


def attend(
    *,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    block_table: torch.Tensor,
    **_: Any,
) -> None:
    """Write the causal attention of queries [T, H, K] to what is kept of each request to `output`."""
    starts = query_start_loc.tolist()
    for request, (first, end) in enumerate(itertools.pairwise(starts)):
        length = int(seq_lens[request])
        key, value = (
            pages[block_table[request].long()].transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1)
            for pages in (key_cache, value_cache)
        )
        readers = query.shape[1] // key.shape[0]
        key, value = key.repeat_interleave(readers, 0), value.repeat_interleave(readers, 0)
        scores = query[first:end].transpose(0, 1) @ key.mT * scale
        later = torch.arange(length) > torch.arange(length - end + first, length)[:, None]
        mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ value
        output[first:end] = mixed.transpose(0, 1).reshape_as(output[first:end])


def stand_in() -> torch.library.Library:
    """Define what the engine asks of the compiled library, for as long as what is returned lives."""
    library = torch.library.Library("_C", "FRAGMENT")
    for schema, function in (
        ("init_cpu_memory_env(int[] nodes) -> ()", lambda nodes: None),
        ("compute_slot_mapping_kernel_impl(Tensor a, Tensor b, Tensor c, Tensor(d!) slots, int size) -> ()", place),
        ("greedy_argmax(Tensor logits) -> Tensor", lambda logits: logits.argmax(-1)),
    ):
        library.define(schema)
        library.impl(schema.partition("(")[0], function, "CompositeExplicitAutograd")
    compiled.cpu_attn_get_scheduler_metadata = lambda *_, **__: torch.empty(0)
    compiled.cpu_attn_reshape_and_cache = keep
    compiled.cpu_attention_with_kv_cache = attend
    return library


def small_model(mixers: list[str]) -> MesaForCausalLM:
    """Return a model whose greedy text varies."""
    torch.manual_seed(0)
    sizes = {**TINY, "num_hidden_layers": len(mixers), "num_attention_heads": 2, "max_position_embeddings": 256}
    config = MesaConfig(
        vocab_size=97, **sizes, mixers=mixers, tolerance=1e-6, tie_word_embeddings=False, eos_token_id=None
    )
    model = MesaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def main(folder: str, *mixers: str) -> None:
    """Write with both and print a JSON object of two lists of token ids for each prompt."""
    library = stand_in()
    model = small_model(list(mixers))
    model.save_pretrained(folder)
    register()
    engine = LLM(
        folder,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        dtype="float32",
        max_model_len=128,
        max_num_batched_tokens=32,
        max_num_seqs=4,
    )
    prompts = [torch.randint(97, (length,)).tolist() for length in LENGTHS]
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    written = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy)
    wanted = [
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        for prompt in map(torch.tensor, ([prompt] for prompt in prompts))
    ]
    found = [list(result.outputs[0].token_ids) for result in written]
    print(json.dumps({"vllm": found, "generate": [row[0, -NEW:].tolist() for row in wanted]}))
    del library


if __name__ == "__main__":
    main(*sys.argv[1:])

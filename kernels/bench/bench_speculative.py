"""Time greedy decoding of a repetitive text: plain and by prompt lookup, side by side.

    python kernels/bench/bench_speculative.py --mixers mesa linear delta softmax

The models have random weights, whose greedy text soon goes round in circles: the best case for prompt lookup. Prints
one line per mixer; rates are tokens per second, the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.hub.speculate import prompt_lookup, speculate

parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
parser.add_argument("--mixers", nargs="+", default=["mesa", "linear", "delta", "softmax"])
parser.add_argument("--hidden", type=int, default=256)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--prompt", type=int, default=256, help="tokens, a period of 32 repeated")
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--repeats", type=int, default=3)


def main() -> None:
    """Time and print."""
    options = parser.parse_args()
    print("| mixer | plain | prompt lookup | tokens per pass | same text |\n|---|---|---|---|---|")
    passes: list[int] = []
    for mixer in options.mixers:
        torch.manual_seed(0)
        sizes = {"hidden_size": options.hidden, "intermediate_size": 2 * options.hidden, "vocab_size": 512}
        depth = {"num_hidden_layers": options.layers, "num_attention_heads": options.hidden // 64}
        config = MesaConfig(**sizes, **depth, mixers=mixer.split("+"), max_position_embeddings=4096)
        model: Any = MesaForCausalLM(config).eval()
        ids = torch.randint(2, 512, (1, 32)).repeat(1, options.prompt // 32)
        hook = model.register_forward_hook(lambda *_: passes.append(1))
        ways: dict[str, dict] = {"plain": {}, "lookup": {"custom_generate": speculate, "draft": prompt_lookup()}}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        texts = {}
        for _ in range(options.repeats):
            for way, choice in ways.items():
                passes.clear()
                start = time.perf_counter()
                texts[way] = model.generate(
                    ids, max_new_tokens=options.tokens, min_new_tokens=options.tokens, do_sample=False, **choice
                )
                rates[way].append(options.tokens / (time.perf_counter() - start))
        hook.remove()
        plain, lookup = (statistics.median(rates[way]) for way in ways)
        same = bool(torch.equal(*texts.values()))
        print(f"| {mixer} | {plain:.0f} | {lookup:.0f} | {options.tokens / len(passes):.1f} | {same} |", flush=True)


if __name__ == "__main__":
    main()

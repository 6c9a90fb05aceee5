"""Continue a prompt."""

from __future__ import annotations

import argparse

from mesalm.commands.words import MODEL, count, seed


def add_sample(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm sample`."""
    command = commands.add_parser("sample", help="continue a prompt")
    command.add_argument("model", help=MODEL)
    command.add_argument("--prompt", default="", help="the text to continue")
    command.add_argument("--tokens", type=count, default=200, help="most tokens to add (default 200)")
    command.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    command.add_argument("--top-p", type=float, default=0.95, help="share of probability to sample from (default 0.95)")
    command.add_argument("--seed", type=seed, default=0)
    command.add_argument("--device", default="cpu", help="cpu, cuda, auto, ... (default cpu)")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    command.set_defaults(run=sample)


def sample(options: argparse.Namespace) -> None:
    """Print a continuation as it is made."""
    from mesalm.hub.sample import sample as continue_prompt

    continue_prompt(
        options.model,
        options.prompt,
        tokens=options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )

"""Continue a prompt."""

from __future__ import annotations

import argparse

from mesalm.doors.words import MODEL, count, seed


def sample_door(doors: argparse._SubParsersAction) -> None:
    """Add `mesalm sample`."""
    door = doors.add_parser("sample", help="continue a prompt")
    door.add_argument("model", help=MODEL)
    door.add_argument("--prompt", default="", help="the text to continue")
    door.add_argument("--tokens", type=count, default=200, help="most tokens to add (default 200)")
    door.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    door.add_argument("--top-p", type=float, default=0.95, help="share of probability to sample from (default 0.95)")
    door.add_argument("--seed", type=seed, default=0)
    door.add_argument("--device", default="cpu", help="cpu, cuda, auto, ... (default cpu)")
    door.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    door.set_defaults(door=sample)


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

"""Continue a prompt."""

from __future__ import annotations

import argparse

from mesalm.commands.words import MODEL, add_device, chosen, count, seed

HELP = "continue a prompt"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm sample`."""
    command.add_argument("model", help=MODEL)
    command.add_argument("--prompt", default="", help="the text to continue")
    command.add_argument("--tokens", type=count, default=200, help="maximum number of tokens to add (default 200)")
    command.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default 0.8)")
    command.add_argument("--top-p", type=float, default=0.95, help="probability mass to sample from (default 0.95)")
    command.add_argument("--seed", type=seed, default=0, help="what tokens are drawn with (default 0)")
    add_device(command, "cpu")


def run(options: argparse.Namespace) -> None:
    """Print a continuation while it is generated."""
    from mesalm.hub.sample import sample

    names = ("model", "prompt", "tokens", "temperature", "top_p", "seed", "device", "trust_remote_code")
    sample(**chosen(options, *names))

"""Turn a softmax checkpoint into one with mesa layers."""

from __future__ import annotations

import argparse

from mesalm.commands.words import chosen, count, folder_to_write, seed
from mesalm.model.mixers import MIXERS

HELP = "swap a checkpoint's softmax attention for mesa layers"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm convert`."""
    command.add_argument(
        "model",
        help="a Llama or Qwen3 checkpoint, a MesaNet or gated delta net of flash-linear-attention, or a model of "
        "mesalm: a folder or Hub name",
    )
    command.add_argument("folder", type=folder_to_write, help="a new folder")
    command.add_argument(
        "--layers", default="all", help="which to swap: all, none, or numbers from 0 like 1,3 or 0-5 or every-2"
    )
    known = [name for name, row in MIXERS.items() if row.converts]
    command.add_argument("--mixer", choices=known, default="mesa", help="what to put there (default mesa)")
    command.add_argument(
        "--calibrate",
        action="append",
        default=[],
        metavar="FILE",
        help="text to fit the new layers to; may be given again (default: text the model writes itself)",
    )
    command.add_argument("--tokens", type=count, help="how many tokens to fit to (default 8192, more for wide models)")
    command.add_argument("--seed", type=seed, default=0)
    command.add_argument(
        "--to", choices=("fla",), help="write a mesa or delta model as flash-linear-attention's, with no layer swapped"
    )


def run(options: argparse.Namespace) -> None:
    """Convert a model and say how well each new layer fits."""
    from mesalm.hub.convert import convert
    from mesalm.hub.peers import write_peer

    if options.to is not None:
        print(f"converted: {write_peer(options.model, options.folder)}")
        return
    folder = convert(**chosen(options, "model", "folder", "layers", "mixer", "calibrate", "tokens", "seed"))
    print(f"converted: {folder}")

"""Look inside a trained model."""

from __future__ import annotations

import argparse

from mesalm.commands.words import MODEL, add_device, add_texts, chosen, count, file_to_write, folder_to_write

HELP = "measure a model's gates and how hard its mesa layers are to solve"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm inspect`."""
    command.add_argument("model", help=MODEL)
    add_texts(command)
    command.add_argument("--tokens", type=count, default=2048, help="tokens of text to read (default 2048)")
    command.add_argument("--length", type=count, help="tokens per window (default: the run's row length, else 512)")
    command.add_argument("--out", type=folder_to_write, help="folder to write to (default reports/inspect-NAME)")
    command.add_argument(
        "--record", type=file_to_write, metavar="FILE", help="write the first window's operands to a safetensors"
    )
    command.add_argument("--record-heads", metavar="LAYER.HEAD,...", help="key heads to record (default all)")
    add_device(command)


def run(options: argparse.Namespace) -> None:
    """Print a model's gates and condition numbers and draw them."""
    from mesalm.lab.inspection.run import inspect_model

    names = ("model", "texts", "tokens", "length", "device", "out", "record", "record_heads", "trust_remote_code")
    inspect_model(**chosen(options, *names))

"""Look inside a trained model."""

from __future__ import annotations

import argparse

from mesalm.commands.words import MODEL, count, file_to_write, folder_to_write


def add_inspect(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm inspect`."""
    command = commands.add_parser("inspect", help="measure a model's gates and how hard its mesa layers are to solve")
    command.add_argument("model", help=MODEL)
    command.add_argument(
        "--text", action="append", default=[], metavar="FILE", help="held-out text; may be given again"
    )
    command.add_argument("--tokens", type=count, default=2048, help="how much text to read (default 2048)")
    command.add_argument("--length", type=count, help="tokens of a window (default: as the run was trained, else 512)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    command.add_argument("--out", type=folder_to_write, help="folder to write to (default reports/inspect-NAME)")
    command.add_argument(
        "--record", type=file_to_write, metavar="FILE", help="write the first window's operands to a safetensors"
    )
    command.add_argument("--record-heads", metavar="LAYER.HEAD,...", help="key heads to record (default all)")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    command.set_defaults(run=inspect)


def inspect(options: argparse.Namespace) -> None:
    """Print a model's gates and condition numbers and draw them."""
    from mesalm.lab.inspection.run import inspect_model

    inspect_model(
        options.model,
        texts=options.text,
        tokens=options.tokens,
        length=options.length,
        device=options.device,
        out=options.out,
        record=options.record,
        record_heads=options.record_heads,
        trust_remote_code=options.trust_remote_code,
    )

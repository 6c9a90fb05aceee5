"""The commands, one file each: the arguments of `mesalm COMMAND` and the call that does the work."""

from __future__ import annotations

from types import ModuleType

from mesalm.commands import (
    compare,
    convert,
    evaluate,
    inspect_model,
    lab,
    plot,
    prepare,
    publish,
    sample,
    smoke,
    sweep,
    synth,
    train,
    tune,
)

COMMANDS: dict[str, ModuleType] = {
    "prepare": prepare,
    "train": train,
    "smoke": smoke,
    "sweep": sweep,
    "plot": plot,
    "sample": sample,
    "eval": evaluate,
    "compare": compare,
    "synth": synth,
    "tune": tune,
    "inspect": inspect_model,
    "convert": convert,
    "lab": lab,
    "publish": publish,
}
"""Name -> its file, in the order of `mesalm --help`.

Each file defines HELP, one line; `arguments(command)`, which adds arguments to the parser; and `run(options)`. If it
defines `fields()`, `--help` prints that text too.
"""

"""The commands, one file each: what `mesalm COMMAND` takes and which package does the work."""

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

Each file has HELP, a line; `arguments(command)`, which adds arguments to its parser; and `run(options)`. A file with
`fields()` has its text printed behind `--help`.
"""

"""The commands, one file each: what `mesalm COMMAND` takes and which room does the work."""

from __future__ import annotations

from mesalm.commands.compare import add_compare
from mesalm.commands.convert import add_convert
from mesalm.commands.evaluate import add_eval
from mesalm.commands.inspect_model import add_inspect
from mesalm.commands.lab import add_lab
from mesalm.commands.prepare import add_prepare
from mesalm.commands.publish import add_publish
from mesalm.commands.sample import add_sample
from mesalm.commands.smoke import add_smoke
from mesalm.commands.synth import add_synth
from mesalm.commands.train import add_train
from mesalm.commands.tune import add_tune

COMMANDS = (
    add_prepare,
    add_train,
    add_smoke,
    add_sample,
    add_eval,
    add_compare,
    add_synth,
    add_tune,
    add_inspect,
    add_convert,
    add_lab,
    add_publish,
)
"""Each adds its parser to the program's; `mesalm --help` lists them in this order."""

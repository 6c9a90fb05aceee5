"""The doors of the house, one file each: what `mesalm DOOR` takes and which room does the work."""

from __future__ import annotations

from mesalm.doors.converting import convert_door
from mesalm.doors.experimenting import lab_door
from mesalm.doors.inspecting import inspect_door
from mesalm.doors.measuring import compare_door, eval_door
from mesalm.doors.preparing import prepare_door
from mesalm.doors.publishing import publish_door
from mesalm.doors.sampling import sample_door
from mesalm.doors.synthesis import synth_door
from mesalm.doors.training import train_door
from mesalm.doors.tuning import tune_door

DOORS = (
    prepare_door,
    train_door,
    sample_door,
    eval_door,
    compare_door,
    synth_door,
    tune_door,
    inspect_door,
    convert_door,
    lab_door,
    publish_door,
)
"""Each adds its parser to the program's; `mesalm --help` lists them in this order."""

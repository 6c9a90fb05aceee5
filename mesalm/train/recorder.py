"""Record a run's events in journal, trackers and display, and raise alarms on the numbers of logged steps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import Accelerator

from mesalm.journal import Journal
from mesalm.train.launch import broadcast
from mesalm.train.progress import Display, Tally, event_line

STEEP, FEWEST = 10.0, 10
"""A gradient norm above STEEP times the median of the last logged ones is an alarm, once there are FEWEST of them."""
MISSES = 0.01
"""Share of solutions out of tolerance above which an alarm is raised."""
SHUT = 0.01
"""Mean of a gate over a row below which its head counts as dead: it writes nothing, or remembers nothing."""
SATURATED = 0.95
"""Share of a row's forget gates within 0.01 of 0 or 1 above which an alarm is raised: a sigmoid hardly learns there."""


class Alarms:
    """Alarms on gradient norm, solver and gates, each raised once for the whole model or for a head."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=50)
        self._told: set[tuple[Any, ...]] = set()

    def raised(self, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the new alarms of a step's journal line: name, value and, for a head's alarm, its layer and head."""
        found = []
        norm = fields["gradient_norm"]
        if len(self._norms) >= FEWEST and norm > STEEP * statistics.median(self._norms):
            found.append({"alarm": "gradient norm", "value": norm})
        if math.isfinite(norm):  # other values would spoil the median
            self._norms.append(norm)
        place = {"layer": fields["solver_layer"], "head": fields["solver_head"]}
        for name, key, bad in (
            ("solutions out of tolerance", "solver_misses", lambda value: value > MISSES),
            ("input gate shut", "input_gate", lambda value: value < SHUT),
            ("forget gate shut", "forget_gate", lambda value: value < SHUT),
        ):
            value = fields[key]
            if value is not None and bad(value):
                found.append({"alarm": name, "value": value, **place})
        saturated = fields["saturated_forget_gates"]
        if saturated is not None and saturated > SATURATED:
            found.append({"alarm": "forget gates saturated", "value": saturated})
        fresh = [alarm for alarm in found if self._key(alarm) not in self._told]
        self._told |= {self._key(alarm) for alarm in fresh}
        return fresh

    @staticmethod
    def _key(alarm: Mapping[str, Any]) -> tuple[Any, ...]:
        return alarm["alarm"], alarm.get("layer"), alarm.get("head")


class Recorder:
    """Writes every event of a run to its journal, trackers and display."""

    def __init__(self, accelerator: Accelerator, journal: Journal, display: Display, tally: Tally) -> None:
        self.tally = tally
        self._accelerator, self._journal, self._display = accelerator, journal, display
        self._alarms = Alarms()

    def write(self, event: str, **fields: Any) -> None:
        """Write a line of the journal, with the step and the tokens so far."""
        self._journal.write(event, step=self.tally.step, tokens=self.tally.tokens, **fields)

    def missing(self, events: Iterable[str]) -> list[str]:
        """Return which of the events the journal lacks at the current step; must be called on all processes."""
        lacking = [event for event in events if not self._journal.holds(event, step=self.tally.step)]
        found: list[str] = broadcast(self._accelerator, lacking)
        return found

    def step(self, fields: Mapping[str, Any]) -> None:
        """Record the numbers of a logged step, and the alarms that they raise."""
        self._journal.write("step", **fields)
        self._track("train", fields)
        for alarm in self._alarms.raised(fields):
            self.report("alarm", alarm)
        speed, left = fields["tokens_per_second"], fields["seconds_left"]
        self._display.update(fields["step"], fields["loss"], speed, left, fields["epoch"], logged=fields)

    def report(self, event: str, fields: Mapping[str, Any]) -> None:
        """Record an event beside the steps, and print it."""
        self.write(event, **fields)
        self._track(event, fields)
        self._display.say(event_line(self.tally.step, event, fields))

    def report_all(self, event: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Record each of several events of a kind."""
        for fields in lines:
            self.report(event, fields)

    def _track(self, event: str, fields: Mapping[str, Any]) -> None:
        where = "/".join([event, *(str(fields[name]) for name in ("task", "shots") if fields.get(name) is not None)])
        numbers = {f"{where}/{name}": value for name, value in fields.items() if isinstance(value, (int, float))}
        if self._accelerator.trackers and numbers:
            self._accelerator.log(numbers, step=self.tally.step)

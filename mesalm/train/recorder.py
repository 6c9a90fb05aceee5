"""What a run says of itself: each fact goes to the journal, to the trackers and to the display."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import Accelerator

from mesalm.journal import Journal
from mesalm.train.alarms import Alarms
from mesalm.train.launch import broadcast
from mesalm.train.meters import Tally
from mesalm.train.progress import Display, event_line


class Recorder:
    """The journal, the trackers and the display of one run, which get every fact together."""

    def __init__(self, accelerator: Accelerator, journal: Journal, display: Display, tally: Tally) -> None:
        self.tally = tally
        self._accelerator, self._journal, self._display = accelerator, journal, display
        self._alarms = Alarms()

    def write(self, event: str, **fields: Any) -> None:
        """Write a line of the journal, with the step and the tokens so far."""
        self._journal.write(event, step=self.tally.step, tokens=self.tally.tokens, **fields)

    def missing(self, events: Iterable[str]) -> list[str]:
        """Return those of some events that the journal lacks at the present step; all processes call it."""
        lacking = [event for event in events if not self._journal.holds(event, self.tally.step)]
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

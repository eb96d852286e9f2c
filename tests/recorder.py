"""An observer that keeps the events it receives."""

from __future__ import annotations

from echod.events import Closed, Ending, Event, Refused


class Recorder(list[Event]):
    """A list of events, in the order in which they were received."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def closed(self) -> list[Closed]:
        return [event for event in self if isinstance(event, Closed)]

    @property
    def endings(self) -> list[Ending]:
        return [event.ending for event in self.closed]

    @property
    def refused(self) -> list[Refused]:
        return [event for event in self if isinstance(event, Refused)]

"""Responses of the HTTP servers, and what they log."""

from __future__ import annotations

from twisted.logger import LogEvent, globalLogPublisher


class Reply:
    """The first response in ``received``, and the ``rest``."""

    def __init__(self, received: bytes) -> None:
        head, _, rest = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        _, code, self.reason = status.split(" ", 2)
        self.status = int(code)
        self.headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
        length = int(self.headers.get("content-length", 0))
        self.body, self.rest = rest[:length].decode(), rest[length:]


class Logged:
    """A context in which all log events are recorded."""

    def __enter__(self) -> list[LogEvent]:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        return self.events

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self.events.append)

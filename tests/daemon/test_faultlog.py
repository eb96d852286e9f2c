"""Faulty ports in the log: plans, firings, and counts."""

from __future__ import annotations

import json

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent

from echod.daemon import faultlog
from echod.daemon.faultlog import FaultLog, log_plan
from echod.daemon.logs import json_line
from echod.events import Opened
from echod.faultplan import Plan, when
from echod.faults import Faults

PORT = "tcp 127.0.0.1:7"


class Logged:
    """A faulty port, and what it logs."""

    def __init__(self, events: list[LogEvent]) -> None:
        self.events = events
        self.clock = Clock()
        rules = (when.first(2).refuse(), when.every(7, "message", 64).damage())
        self.faults = Faults(Plan(rules, 7), 0, port=PORT)
        self.refuse, self.damage = (each.text for each in self.faults.rules)

    def log(self, *, verbose: bool = False) -> FaultLog:
        log = FaultLog(self.clock, [self.faults], verbose=verbose)
        self.faults.observer = log
        return log

    def fire(self, rule: int, number: int, offset: int = 0) -> None:
        self.faults.fire(self.faults.rules[rule], number, offset, 0)

    def lines(self) -> list[str]:
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    events: list[LogEvent] = []
    monkeypatch.setattr(faultlog.log, "observer", events.append)
    return Logged(events)


def test_plan(logged: Logged) -> None:
    """The plan of a faulty port is a warning, with the seed."""
    log_plan(logged.faults)
    assert [event["log_level"] for event in logged.events] == [LogLevel.warn]
    assert logged.lines() == [f"FAULTY {PORT}: {logged.refuse}; {logged.damage} (seed 7)"]


def test_summary(logged: Logged) -> None:
    """Many firings are one line a second, with the number of firings of each rule."""
    logged.log()(Opened(IPv4Address("TCP", "192.0.2.1", 1)))
    logged.fire(0, 1)
    for number in range(1000):
        logged.fire(number % 2, number)
    logged.clock.advance(1)
    assert logged.lines() == [
        f"1 fault: {logged.refuse!r} 1, on {PORT}",
        f"1000 faults: {logged.refuse!r} 500, {logged.damage!r} 500, the last on {PORT}",
    ]


def test_verbose(logged: Logged) -> None:
    """With verbose, each firing is a line."""
    logged.log(verbose=True)
    logged.fire(0, 1)
    logged.fire(1, 3, 384)
    [_, last] = [json.loads(str(json_line(event))) for event in logged.events]
    assert {name: value for name, value in last.items() if name != "time"} == {
        "level": "debug",
        "event": "fired",
        "port": PORT,
        "rule": logged.damage,
        "connection": 3,
        "offset": 384,
    }
    assert logged.lines() == [
        f"fault on {PORT}: {logged.refuse}; number 1, offset 0",
        f"fault on {PORT}: {logged.damage}; number 3, offset 384",
    ]


def test_counts(logged: Logged) -> None:
    """At the end, the pending summary and the count of each rule are logged."""
    log = logged.log()
    logged.fire(0, 1)
    logged.fire(0, 2)
    logged.lines()
    log.flush()
    assert logged.lines() == [
        f"1 fault: {logged.refuse!r} 1, on {PORT}",
        f"{PORT}: {logged.refuse}: firings: 2",
        f"{PORT}: {logged.damage}: firings: 0",
    ]

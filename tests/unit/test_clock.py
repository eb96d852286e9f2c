"""Monotonic time beside, and in, a reactor that follows the time of day."""

from __future__ import annotations

import ast
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.base import ReactorBase
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IReactorTime, IReadDescriptor
from twisted.internet.task import Clock, LoopingCall
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from echod import clock as clock_module
from echod.client.protocol import EchoClientFactory
from echod.client.reactor import PreciseReactor
from echod.clock import (
    CANCELLED,
    DescriptorTimer,
    MonotonicClock,
    ReactorTimer,
    clock_of,
    use_monotonic_time,
)
from echod.events import Ending, Reason
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from echod.testing import MemoryNetwork, Peer
from echod.udp import EchoDatagrams
from tests import ROOT, TIMEOUT
from tests.endpoints.server import Peers
from tests.endpoints.sockets import TCP4Endpoints
from tests.reactors import REACTORS, reactor_of_kind, turn
from tests.recorder import Recorder

BACK = -30.0
"""Seconds that the time of day is set by: more than TIMEOUT, so that a timer that follows fails."""

HOUR = 3600.0

kinds = pytest.mark.parametrize("kind", REACTORS)


class TimeOfDay:
    """The time of day, which a test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def time_of_day(monkeypatch: pytest.MonkeyPatch) -> TimeOfDay:
    """Have all of Twisted's reactors follow a time of day that can be set."""
    time_of_day = TimeOfDay()
    monkeypatch.setattr(ReactorBase, "seconds", staticmethod(time_of_day))
    return time_of_day


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """Return what is logged."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def turn_until(reactor: Any, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline, "it does not happen"
        turn(reactor, 0.01)


def without_descriptors(reactor: Any) -> MonotonicClock:
    """Return a clock whose timer is the reactor's own."""
    timers: Any = SimpleNamespace(callLater=reactor.callLater)
    directlyProvides(timers, IReactorTime)
    return MonotonicClock(timers)


@kinds
@pytest.mark.parametrize("make", [MonotonicClock, without_descriptors])
def test_set_forward(kind: str, make: Callable[[Any], Any], time_of_day: TimeOfDay) -> None:
    """No call is early when the time of day is set forward, whatever the timer is."""
    reactor = reactor_of_kind(kind)
    clock = make(reactor)
    began, called = time.monotonic(), []
    clock.callLater(0.1, lambda: called.append(time.monotonic() - began))
    turn(reactor)
    time_of_day.ahead = HOUR
    turn_until(reactor, lambda: called)
    assert called[0] >= 0.1
    assert clock.getDelayedCalls() == []


@kinds
def test_set_back(kind: str, time_of_day: TimeOfDay) -> None:
    """No call is late when the time of day is set back, and nothing is left in the reactor."""
    reactor = reactor_of_kind(kind)
    readers = reactor.getReaders()
    clock = MonotonicClock(reactor)
    called: list[int] = []
    clock.callLater(0.02, called.append, 1)
    turn(reactor)
    time_of_day.ahead = BACK
    turn_until(reactor, lambda: called)
    clock.callLater(0, called.append, 2)
    turn_until(reactor, lambda: called == [1, 2])
    assert reactor.getReaders() == readers
    assert reactor.getDelayedCalls() == []


def test_set_back_without_a_descriptor(time_of_day: TimeOfDay) -> None:
    """Where the reactor is the timer, calls are late by what the time of day was set back by."""
    reactor = reactor_of_kind("select")
    clock = without_descriptors(reactor)
    called: list[int] = []
    began = time.monotonic()
    clock.callLater(0.01, called.append, 1)
    time_of_day.ahead = BACK
    while time.monotonic() < began + 0.05:
        turn(reactor, 0.01)
    assert called == []
    time_of_day.ahead = 0
    turn_until(reactor, lambda: called)


def test_no_reactor() -> None:
    """What is no reactor is refused at once."""
    for takes_reactor in (MonotonicClock, use_monotonic_time):
        with pytest.raises(TypeError, match="reactor takes a provider of IReactorTime"):
            takes_reactor(3)


def test_interfaces() -> None:
    """Clock and timer are what Twisted says that they are."""
    clock = MonotonicClock(reactor_of_kind("epoll"))
    assert verifyObject(IReactorTime, clock)
    assert verifyObject(IReadDescriptor, clock._timer)
    assert clock._timer.logPrefix() == "echod"
    assert abs(clock.seconds() - time.monotonic()) < TIMEOUT


def calls_made(
    clock: Any, advance: Callable[[float], None], deeds: list[tuple[str, int, float]]
) -> list[tuple[int, float]]:
    """Do ``deeds`` with the calls of ``clock``, and return which calls were made, and when."""
    made: list[tuple[int, float]] = []
    calls: list[Any] = []
    for deed, which, seconds in deeds:
        if deed == "advance":
            advance(seconds)
        elif deed == "call" or not calls:
            number = len(calls)
            calls.append(
                clock.callLater(seconds, lambda at=number: made.append((at, clock.seconds())))
            )
        else:
            call = calls[which % len(calls)]
            if call.active():
                arguments = () if deed == "cancel" else (seconds,)
                getattr(call, deed)(*arguments)
            else:
                with pytest.raises((AlreadyCalled, AlreadyCancelled)):
                    call.cancel()
        assert sorted(call.getTime() for call in clock.getDelayedCalls()) == sorted(
            call.getTime() for call in calls if call.active()
        )
    advance(1000)
    return made


@given(
    deeds=st.lists(
        st.tuples(
            st.sampled_from(["advance", "call", "call", "cancel", "reset", "delay"]),
            st.integers(0, 20),
            # Halves, which are exact. The order of calls at one moment is not promised.
            st.integers(0, 20).map(lambda halves: halves / 2),
        )
    )
)
@example(deeds=[("call", 0, 1.0), ("call", 0, 1.0), ("cancel", 1, 0.0)])
def test_as_twisted_does(deeds: list[tuple[str, int, float]]) -> None:
    """Calls are made, moved and cancelled as by Twisted's own clock."""
    reactor, twisted = Clock(), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module.time, "monotonic", reactor.seconds)
        mine = calls_made(MonotonicClock(reactor), by_halves(reactor), deeds)
        assert reactor.getDelayedCalls() == []
    assert sorted(mine) == sorted(calls_made(twisted, by_halves(twisted), deeds))


def by_halves(clock: Clock) -> Callable[[float], None]:
    """Return what advances ``clock``, never past a call."""

    def advance(seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            clock.advance(0.5)

    return advance


def test_many_cancelled() -> None:
    """Calls that are cancelled long before they are due do not stay in memory."""
    clock = MonotonicClock(reactor_of_kind("epoll"))
    last = clock.callLater(HOUR, list)
    for _ in range(10 * CANCELLED):
        clock.callLater(HOUR + 1, list).cancel()
        assert len(clock._calls) <= CANCELLED + 2
    assert clock.getDelayedCalls() == [last]
    last.cancel()
    assert clock._calls == []


def test_call_fails(log: list[LogEvent]) -> None:
    """A call that raises is logged, and those after it are made."""
    reactor = reactor_of_kind("epoll")
    clock = MonotonicClock(reactor)
    called: list[int] = []
    clock.callLater(0, lambda: 1 // 0)
    clock.callLater(0, called.append, 1)
    turn_until(reactor, lambda: called)
    [event] = log
    assert event["log_failure"].check(ZeroDivisionError)


def test_far_away() -> None:
    """A call may be as far away as any number of seconds, or due at once."""
    reactor = reactor_of_kind("epoll")
    clock = MonotonicClock(reactor)
    called: list[int] = []
    far = [clock.callLater(delay, called.append, 0) for delay in (1e10, 1e300)]
    clock.callLater(-1e9, called.append, 1)
    turn_until(reactor, lambda: called)
    for call in far:
        call.cancel()
    assert called == [1]


def test_not_yet() -> None:
    """A timer that was started again since it expired does not fail."""
    reactor = reactor_of_kind("epoll")
    expired: list[bool] = []
    timer = DescriptorTimer(reactor, lambda: expired.append(True))
    timer.start(time.monotonic() + HOUR)
    timer.doRead()
    timer.connectionLost(None)  # type: ignore[arg-type]  # the reactor stops
    timer.stop()
    assert expired == [True]


def test_closed() -> None:
    """A clock that is not used any more leaves no descriptor open."""
    clock = MonotonicClock(reactor_of_kind("epoll"))
    assert isinstance(clock._timer, DescriptorTimer)
    descriptor = clock._timer.fileno()
    os.fstat(descriptor)
    del clock
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("without", ["symbol", "permission", "ctypes"])
def test_no_timerfd(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no timerfd, or it is forbidden, the reactor is the timer."""
    if without == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    else:
        library = SimpleNamespace(timerfd_settime=None, timerfd_create=lambda *_: -1)
        if without == "symbol":
            del library.timerfd_create
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    reactor = reactor_of_kind("epoll")
    clock = MonotonicClock(reactor)
    assert isinstance(clock._timer, ReactorTimer)
    called: list[int] = []
    clock.callLater(0.01, called.append, 1)
    turn_until(reactor, lambda: called)


def test_clock_of() -> None:
    """A reactor that follows the time of day has one clock; what does not is its own."""
    reactor = reactor_of_kind("poll")
    clock = clock_of(reactor)
    assert isinstance(clock, MonotonicClock)
    assert clock_of(reactor) is clock
    assert clock_of(clock) is clock
    for own in (Clock(), MemoryNetwork(), PreciseReactor.__new__(PreciseReactor)):
        assert clock_of(own) is own


@pytest.fixture
def monotonic_reactor(
    kind: str, time_of_day: TimeOfDay, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Return a reactor, which follows the time of day again after the test."""
    reactor = reactor_of_kind(kind)
    monkeypatch.setattr(reactor, "seconds", time_of_day)
    del reactor.seconds
    return reactor


@kinds
def test_whole_reactor(kind: str, monotonic_reactor: Any, time_of_day: TimeOfDay) -> None:
    """A reactor that was made monotonic is neither early nor late, nor are calls of before."""
    reactor = monotonic_reactor
    began, called = time.monotonic(), []

    def note(what: str) -> None:
        called.append((what, time.monotonic() - began))

    reactor.callLater(0.1, note, "before")
    moved = reactor.callLater(HOUR, note, "moved")
    gone = reactor.callLater(0.05, note, "cancelled")
    turn(reactor)
    gone.cancel()
    before = reactor.seconds()
    use_monotonic_time(reactor)
    assert 0 <= reactor.seconds() - before < TIMEOUT  # it goes on
    time_of_day.ahead = HOUR
    use_monotonic_time(reactor)  # again: nothing happens
    assert 0 <= reactor.seconds() - before < TIMEOUT
    assert clock_of(reactor) is reactor
    turn(reactor)
    time_of_day.ahead = BACK
    moved.reset(0.15)
    reactor.callLater(0.2, note, "after")
    turn_until(reactor, lambda: len(called) == 3)
    assert [what for what, _ in called] == ["before", "moved", "after"]
    assert all(
        seconds >= least - 1e-6  # a time since the epoch has no more digits
        for (_, seconds), least in zip(called, (0.1, 0.15, 0.2), strict=True)
    )


@pytest.mark.parametrize("kind", ["epoll"])
def test_looping_call(monotonic_reactor: Any, time_of_day: TimeOfDay) -> None:
    """A LoopingCall that runs already goes on, and is not told of a jump."""
    reactor = monotonic_reactor
    counts: list[int] = []
    loop = LoopingCall.withCount(counts.append)
    loop.clock = reactor
    loop.start(0.01, now=False)
    turn_until(reactor, lambda: counts)
    use_monotonic_time(reactor)
    time_of_day.ahead = BACK
    turn_until(reactor, lambda: len(counts) >= 3)
    loop.stop()
    assert sum(counts) < TIMEOUT / 0.01


class Embedded:
    """An EchoFactory in an application whose reactor is as Twisted makes it."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.ends = TCP4Endpoints(kind)
        self.events = Recorder()
        self.factory = EchoFactory(observer=self.events, **options)

    async def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not what():
            assert time.monotonic() < deadline, "it does not happen"
            turn(self.ends.reactor, 0.01)

    async def stop(self) -> None:
        await self.ends.stop()
        await self.ends.turn()


@kinds
@pytest.mark.parametrize("ahead", [BACK, HOUR])
@pytest_twisted.ensureDeferred
async def test_idle(kind: str, ahead: float, time_of_day: TimeOfDay) -> None:
    """An idle timeout is neither early nor late, and the event has the true seconds."""
    served = Embedded(kind, idle_timeout=0.2)
    await served.ends.listen(served.factory)
    began = time.monotonic()
    peer: Peer = await served.ends.connect(Peers())
    await served.until(lambda: served.events)
    time_of_day.ahead = ahead
    await served.ends.until(peer.when_ended())
    lasted = time.monotonic() - began
    [closed] = served.events.closed
    assert closed.ending is Ending.IDLE
    assert 0.2 <= closed.seconds <= lasted
    await served.stop()


@kinds
@pytest_twisted.ensureDeferred
async def test_handshake(kind: str, time_of_day: TimeOfDay) -> None:
    """A client that does not say for whom it connects is reset in time, also on an own clock."""
    for clock in (None, reactor_of_kind(kind)):
        time_of_day.ahead = 0
        served = Embedded(kind, handshake_timeout=0.1, clock=clock)
        await served.ends.listen(ProxyFactory(served.factory))
        peer: Peer = await served.ends.connect(Peers())
        await served.until(lambda factory=served.factory: factory.arriving)
        time_of_day.ahead = BACK
        await served.ends.until(peer.when_ended())
        assert [each.reason for each in served.events.refused] == [Reason.HANDSHAKE_TIMEOUT]
        await served.stop()


@kinds
@pytest_twisted.ensureDeferred
async def test_drain(kind: str, time_of_day: TimeOfDay) -> None:
    """A drain ends at its deadline."""
    served = Embedded(kind)
    await served.ends.listen(served.factory)
    peer: Peer = await served.ends.connect(Peers())
    peer.stall()
    peer.send(bytes(1 << 25))
    await served.until(lambda: any(echo._paused for echo in served.factory.connections))
    drained = served.factory.drain(0.1)
    time_of_day.ahead = BACK
    await served.ends.until(drained)
    assert served.events.endings == [Ending.ABORTED]
    peer.abort()
    await served.stop()


@kinds
@pytest_twisted.ensureDeferred
async def test_client(kind: str, time_of_day: TimeOfDay) -> None:
    """A call of the client times out in time."""
    ends = TCP4Endpoints(kind)
    await ends.listen(Peers())  # which do not answer
    for clock in (None, ends.reactor):
        time_of_day.ahead = 0
        client = await ends.connect(EchoClientFactory(clock))
        call = client.echo(b"hello", timeout=0.05)
        time_of_day.ahead = BACK
        with pytest.raises(TimedOut):
            await ends.until(call)
        client.transport.abortConnection()
    await ends.stop()
    await ends.turn()


def test_datagrams() -> None:
    """The rates of datagrams follow the same clock."""
    reactor = reactor_of_kind("epoll")
    assert EchoDatagrams(reactor).clock is clock_of(reactor)


# Each use of the time of day, and of a reactor's time where it may be that, with its reason.
ALLOWED = {
    ("clock.py", "ReactorBase.seconds"): "what a reactor is asked for, to know whether it is that",
    ("clock.py", "reactor.seconds"): "likewise",
    ("clock.py", "_reactor.callLater"): "where there is no timerfd",
    ("certificates.py", "datetime.now"): "certificates have dates",
    ("daemon/web.py", "datetime.now"): "when the daemon was started, for people",
    ("daemon/logs.py", "datetime.fromtimestamp"): "the time stamp of a line of the log",
    ("daemon/listeners/unix.py", "time.sleep"): "waits for a lock, by CLOCK_MONOTONIC (sleep(3))",
    ("daemon/web.py", "reactor.seconds"): "the daemon's reactor is monotonic",
    ("client/tcp.py", "_reactor.seconds"): "the client's reactor is monotonic",
}

SOURCES = ROOT / "echod"
MODULES = {"time", "datetime", "date"}
HARMLESS = {"monotonic", "CLOCK_MONOTONIC", "process_time", "isoformat"}


def times(path: Path) -> Iterator[str]:
    """Yield what in a file may take the time of day, as it is written there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner, name = getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr
            of_module = owner in MODULES and name not in HARMLESS
            # In the daemon and the client, the reactor is monotonic.
            timed = {"seconds", "callLater"} if path.parent == SOURCES else {"seconds"}
            if of_module or ("reactor" in owner.lower() and name in timed):
                yield f"{owner}.{name}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names)


def test_sources() -> None:
    """Nothing else in the sources takes the time of day."""
    found = {
        (str(path.relative_to(SOURCES)), use)
        for path in SOURCES.rglob("*.py")
        for use in times(path)
    }
    assert found == set(ALLOWED)

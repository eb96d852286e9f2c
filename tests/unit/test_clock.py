"""Monotonic time: clocks beside a reactor that follows the time of day, and monotonic reactors."""

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
from twisted.logger import LogEvent
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from echod import clock as clock_module
from echod.client.protocol import EchoClientFactory
from echod.client.runner import PreciseReactor
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
from tests.reactors import REACTORS, reactor_of_kind, turn
from tests.recorder import Recorder
from tests.streams.server import Peers
from tests.streams.sockets import TCP4Endpoints

BACK = -30.0
"""Seconds that the time of day is set by: more than TIMEOUT, so that a test of a timer that follows
the time of day fails."""

HOUR = 3600.0

kinds = pytest.mark.parametrize("kind", REACTORS)


class TimeOfDay:
    """A time of day that a test can set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def time_of_day(monkeypatch: pytest.MonkeyPatch) -> TimeOfDay:
    """Make all of Twisted's reactors follow a time of day that the test can set."""
    time_of_day = TimeOfDay()
    monkeypatch.setattr(ReactorBase, "seconds", staticmethod(time_of_day))
    return time_of_day


def turn_until(reactor: Any, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline, "it does not happen"
        turn(reactor, 0.01)


def without_descriptors(reactor: Any) -> MonotonicClock:
    """Return a clock that has no timerfd."""
    timers: Any = SimpleNamespace(callLater=reactor.callLater)
    directlyProvides(timers, IReactorTime)
    return MonotonicClock(timers)


@kinds
@pytest.mark.parametrize("make", [MonotonicClock, without_descriptors])
def test_set_forward(kind: str, make: Callable[[Any], Any], time_of_day: TimeOfDay) -> None:
    """No call is early when the time of day is set forward, with either timer."""
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
    """No call is late when the time of day is set back, and the reactor is left clean."""
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
    """Without timerfd, calls are late by the amount that the time of day is set back."""
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
    """Any argument but a reactor is refused at once."""
    for takes_reactor in (MonotonicClock, use_monotonic_time):
        with pytest.raises(TypeError, match="reactor takes a provider of IReactorTime"):
            takes_reactor(3)


def test_interfaces() -> None:
    """Clock and timer provide Twisted's interfaces."""
    clock = MonotonicClock(reactor_of_kind("epoll"))
    assert verifyObject(IReactorTime, clock)
    assert verifyObject(IReadDescriptor, clock._timer)
    assert clock._timer.logPrefix() == "echod"
    assert abs(clock.seconds() - time.monotonic()) < TIMEOUT


def calls_made(
    clock: Any, advance: Callable[[float], None], steps: list[tuple[str, int, float]]
) -> list[tuple[int, float]]:
    """Do ``steps`` with the calls of ``clock``, and return which calls were made, and when."""
    made: list[tuple[int, float]] = []
    calls: list[Any] = []
    for step, which, seconds in steps:
        if step == "advance":
            advance(seconds)
        elif step == "call" or not calls:
            number = len(calls)
            calls.append(
                clock.callLater(seconds, lambda at=number: made.append((at, clock.seconds())))
            )
        else:
            call = calls[which % len(calls)]
            if call.active():
                arguments = () if step == "cancel" else (seconds,)
                getattr(call, step)(*arguments)
            else:
                with pytest.raises((AlreadyCalled, AlreadyCancelled)):
                    call.cancel()
        assert sorted(call.getTime() for call in clock.getDelayedCalls()) == sorted(
            call.getTime() for call in calls if call.active()
        )
    advance(1000)
    return made


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["advance", "call", "call", "cancel", "reset", "delay"]),
            st.integers(0, 20),
            # Halves are exact in binary. Calls at one moment may be made in any order.
            st.integers(0, 20).map(lambda halves: halves / 2),
        )
    )
)
@example(steps=[("call", 0, 1.0), ("call", 0, 1.0), ("cancel", 1, 0.0)])
def test_same_as_twisted(steps: list[tuple[str, int, float]]) -> None:
    """Calls are made, moved and cancelled as on Twisted's own clock."""
    reactor, twisted = Clock(), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module.time, "monotonic", reactor.seconds)
        mine = calls_made(MonotonicClock(reactor), by_halves(reactor), steps)
        assert reactor.getDelayedCalls() == []
    assert sorted(mine) == sorted(calls_made(twisted, by_halves(twisted), steps))


def by_halves(clock: Clock) -> Callable[[float], None]:
    """Return a function that advances ``clock`` in steps that hit each call's moment."""

    def advance(seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            clock.advance(0.5)

    return advance


def test_cancelled_calls() -> None:
    """Calls that are cancelled long before they are due are freed."""
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


def test_any_delay() -> None:
    """A delay may be any number of seconds; a negative one is due at once."""
    reactor = reactor_of_kind("epoll")
    clock = MonotonicClock(reactor)
    called: list[int] = []
    far = [clock.callLater(delay, called.append, 0) for delay in (1e10, 1e300)]
    clock.callLater(-1e9, called.append, 1)
    turn_until(reactor, lambda: called)
    for call in far:
        call.cancel()
    assert called == [1]


def test_restarted_timer() -> None:
    """A timer that was started again after it expired does not fail when it is read."""
    reactor = reactor_of_kind("epoll")
    expired: list[bool] = []
    timer = DescriptorTimer(reactor, lambda: expired.append(True))
    timer.start(time.monotonic() + HOUR)
    timer.doRead()
    timer.connectionLost(None)  # type: ignore[arg-type]  # the reactor stops
    timer.stop()
    assert expired == [True]


def test_descriptor_closed() -> None:
    """A clock that is garbage collected closes its descriptor."""
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
    """Without timerfd, or where it is forbidden, the reactor's callLater is the timer."""
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
    """A reactor that follows the time of day has one clock; any other is its own clock."""
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
    """Return a reactor that follows the time of day again after the test."""
    reactor = reactor_of_kind(kind)
    monkeypatch.setattr(reactor, "seconds", time_of_day)
    del reactor.seconds
    return reactor


@kinds
def test_monotonic_reactor(kind: str, monotonic_reactor: Any, time_of_day: TimeOfDay) -> None:
    """In a monotonic reactor no call is early or late, including those pending before."""
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
    assert 0 <= reactor.seconds() - before < TIMEOUT  # no jump
    time_of_day.ahead = HOUR
    use_monotonic_time(reactor)  # a second call does nothing
    assert 0 <= reactor.seconds() - before < TIMEOUT
    assert clock_of(reactor) is reactor
    turn(reactor)
    time_of_day.ahead = BACK
    moved.reset(0.15)
    reactor.callLater(0.2, note, "after")
    turn_until(reactor, lambda: len(called) == 3)
    assert [what for what, _ in called] == ["before", "moved", "after"]
    assert all(
        seconds >= least - 1e-6  # the precision of a float since the epoch
        for (_, seconds), least in zip(called, (0.1, 0.15, 0.2), strict=True)
    )


@pytest.mark.parametrize("kind", ["epoll"])
def test_looping_call(monotonic_reactor: Any, time_of_day: TimeOfDay) -> None:
    """A LoopingCall that is running continues, and sees no jump of time."""
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
    """An EchoFactory in an application whose reactor follows the time of day."""

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
    """An idle timeout is neither early nor late, and the event's seconds are right."""
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
    """A proxy that sends no header is reset in time, with a clock given to the factory too."""
    for clock in (None, reactor_of_kind(kind)):
        time_of_day.ahead = 0
        served = Embedded(kind, handshake_timeout=0.1, clock=clock)
        await served.ends.listen(ProxyFactory(served.factory))
        peer: Peer = await served.ends.connect(Peers())
        await served.until(lambda factory=served.factory: factory.pending)
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
async def test_client_timeout(kind: str, time_of_day: TimeOfDay) -> None:
    """A call of the client times out in time."""
    ends = TCP4Endpoints(kind)
    await ends.listen(Peers())  # they send no reply
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
    """The rates of datagrams follow the monotonic clock."""
    reactor = reactor_of_kind("epoll")
    assert EchoDatagrams(reactor).clock is clock_of(reactor)


# Each use of the time of day, or of a reactor's time that may follow it, and why it is allowed.
ALLOWED = {
    ("linger.py", "ReactorBase.callLater"): "recognises a reactor that has its own timers",
    ("clock.py", "ReactorBase.seconds"): "recognises a reactor that follows the time of day",
    ("clock.py", "reactor.seconds"): "recognises one, too",
    ("clock.py", "reactor.callLater"): "the timer without timerfd",
    ("certificates.py", "datetime.now"): "certificates have dates",
    ("peer.py", "reactor.seconds"): "the peer's reactor is monotonic",
    ("peer.py", "time.sleep"): "waits between two checks, on CLOCK_MONOTONIC (sleep(3))",
    ("daemon/page.py", "datetime.now"): "the start of the daemon, for display",
    ("daemon/logs.py", "time.time"): "the time stamp of a log line",
    ("daemon/logs.py", "datetime.fromtimestamp"): "the same, as text",
    ("daemon/listeners/unix.py", "time.sleep"): "waits for a lock, on CLOCK_MONOTONIC (sleep(3))",
    ("client/connector.py", "reactor.seconds"): "the client's reactor is monotonic",
    ("client/stamps.py", "time.time_ns"): "the kernel's stamps follow it; a step is recognised",
    ("client/values.py", "datetime.now"): "the time zone of --start-at",
    ("client/values.py", "datetime.fromisoformat"): "the time of --start-at",
    ("client/load.py", "time.time"): "the wait for the time of --start-at",
    ("client/connector.py", "datetime.now"): "the start of a run, for display",
    ("client/commands.py", "time.time"): "the time stamps of lines and events",
    ("client/report.py", "time.time"): "the start of HdrHistogram's log",
    ("client/report.py", "datetime.fromtimestamp"): "the same, for display",
}

SOURCES = ROOT / "echod"
MODULES = {"time", "datetime", "date"}
HARMLESS = {"monotonic", "CLOCK_MONOTONIC", "process_time", "isoformat"}


def times(path: Path) -> Iterator[str]:
    """Yield each expression in a file that may use the time of day."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner, name = getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr
            of_module = owner in MODULES and name not in HARMLESS
            # In the daemon and the client, the reactor is monotonic.
            timed = {"seconds", "callLater"} if path.parent == SOURCES else {"seconds"}
            if of_module or ("reactor" in owner.lower() and name in timed):
                yield f"{owner.lstrip('_')}.{name}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names)


def test_no_time_of_day() -> None:
    """No other code uses the time of day."""
    found = {
        (str(path.relative_to(SOURCES)), use)
        for path in SOURCES.rglob("*.py")
        for use in times(path)
    }
    assert found == set(ALLOWED)

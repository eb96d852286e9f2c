"""Kernel stamps: their conversion while the time of day is set, and sockets that make them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.client.stamps import (
    LONGEST,
    SO_TIMESTAMPING,
    SO_TIMESTAMPNS,
    TIMESPEC,
    TOLERANCE,
    TRANSMIT,
    Ancillary,
    StampClock,
    enable_stamps,
)

READING = 1e-7
"""Seconds that one reading of a clock takes."""


class Clocks:
    """CLOCK_MONOTONIC and CLOCK_REALTIME; each reading takes :data:`READING`.

    :ivar pause: how long this process loses the CPU, once, after the next reading of real time.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.ahead = 1_760_000_000_123_456_789  # nanoseconds of real time over monotonic time
        self.pause = 0.0

    def seconds(self) -> float:
        self.now += READING
        return self.now

    def real(self) -> int:
        self.now += READING + self.pause
        before, self.pause = self.pause, 0.0
        return round((self.now - before) * 1e9) + self.ahead

    def stamp(self) -> Ancillary:
        """Return the stamp of a packet that arrives now."""
        stamp = divmod(round(self.now * 1e9) + self.ahead, 1_000_000_000)
        return [(socket.SOL_SOCKET, SO_TIMESTAMPNS, TIMESPEC.pack(*stamp))]


def close(moment: float, right: float) -> bool:
    return abs(moment - right) < TOLERANCE + 4 * READING


def test_date() -> None:
    """The time is that of the arrival of the packet, however long the packet then waited."""
    clocks = Clocks()
    stamps = StampClock(clocks.seconds, clocks.real)
    assert not stamps.used
    at, stamp = clocks.now, clocks.stamp()
    clocks.now += 5.0
    stamps.check()
    assert close(stamps.date(stamp, clocks.seconds()), at)
    assert stamps.used


def test_lost_processor() -> None:
    """A pause between two readings of the clocks is not a step."""
    clocks = Clocks()
    stamps = StampClock(clocks.seconds, clocks.real)
    at, stamp = clocks.now, clocks.stamp()
    clocks.pause = 0.25
    stamps.check()
    assert close(stamps.date(stamp, clocks.seconds()), at)


def test_future() -> None:
    """A stamp in the future is not used."""
    clocks = Clocks()
    stamps = StampClock(clocks.seconds, clocks.real)
    clocks.now += 1.0
    stamp = clocks.stamp()
    assert stamps.date(stamp, 1000.5) == 1000.5
    assert not stamps.used


@pytest.mark.parametrize("step", [-3600.0, -0.1, -0.0001, 0.0001, 0.1, 3600.0])
def test_after_a_step(step: float) -> None:
    """After a step of the time of day, stamps are soon used again."""
    clocks = Clocks()
    stamps = StampClock(clocks.seconds, clocks.real)
    clocks.ahead += round(step * 1e9)
    stamps.check()
    clocks.now += LONGEST
    at, stamp = clocks.now, clocks.stamp()
    stamps.check()
    assert close(stamps.date(stamp, clocks.seconds()), at)
    assert stamps.used


@given(st.data())
def test_steps(data: st.DataObject) -> None:
    """Whenever the time of day is set, a stamp is right, or is not used."""
    clocks = Clocks(data.draw(st.floats(1.0, 1e7)))
    stamps = StampClock(clocks.seconds, clocks.real)
    waiting: list[tuple[float, Ancillary]] = []
    sizes = st.one_of(st.floats(-1e-4, 1e-4), st.floats(-9.0, 9.0), st.floats(-1e6, 1e6))
    is_set = False
    for event in data.draw(st.lists(st.sampled_from(["packet", "packet", "step", "receive"]))):
        clocks.now += data.draw(st.sampled_from([1e-5, 1e-3, 0.3]))
        if event == "packet":
            waiting.append((clocks.now, clocks.stamp()))
        elif event == "step" and not is_set:
            clocks.ahead += round(data.draw(sizes) * 1e9)
            is_set = True
        elif event == "receive":
            is_set = False
            stamps.check()
            for _ in range(min(len(waiting), data.draw(st.integers(1, 3)))):
                at, stamp = waiting.pop(0)
                now = clocks.seconds()
                moment = stamps.date(stamp, now)
                assert moment == now or close(moment, at)


def test_other_sockets() -> None:
    """A UNIX socket has no stamps, nor does a socket whose kernel lacks the option."""

    class Refusing(socket.socket):
        def setsockopt(self, *_: Any) -> None:  # type: ignore[override]
            raise OSError(92, "Protocol not available")

    with socket.socket(socket.AF_UNIX) as unix, Refusing(socket.AF_INET) as refusing:
        assert not enable_stamps(unix, SO_TIMESTAMPNS)
        assert not enable_stamps(refusing, SO_TIMESTAMPNS)
        assert not enable_stamps(unix, SO_TIMESTAMPING, TRANSMIT)

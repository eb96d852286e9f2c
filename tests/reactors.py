"""A reactor of each kind that Linux has, iterated by hand so that several can coexist."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor


def asyncio_reactor() -> Any:
    loop = asyncio.SelectorEventLoop()
    atexit.register(loop.close)
    return AsyncioSelectorReactor(loop)


REACTORS: dict[str, Callable[[], Any]] = {
    "epoll": EPollReactor,
    "poll": PollReactor,
    "select": SelectReactor,
    "asyncio": asyncio_reactor,
}


_made: dict[str, Any] = {}


def reactor_of_kind(kind: str) -> Any:
    """Return the one reactor of this kind."""
    if kind not in _made:
        _made[kind] = REACTORS[kind]()
    return _made[kind]


def turn(reactor: Any, seconds: float = 0) -> None:
    """Run one iteration of the reactor; without an event, it waits for ``seconds``."""
    if isinstance(reactor, AsyncioSelectorReactor):
        loop = reactor._asyncioEventloop
        loop.call_later(seconds, loop.stop) if seconds else loop.call_soon(loop.stop)
        loop.run_forever()
    else:
        reactor.iterate(seconds)


def settle_all() -> None:
    """Finish what a test has begun on any reactor, such as closing a port; fail on a leftover."""
    for reactor in _made.values():
        for _ in range(100):
            if not _left(reactor) and not _due(reactor):
                break
            turn(reactor)
        else:
            left = _left(reactor)
            reactor.removeAll()
            raise AssertionError(f"a test has left these open: {left}")


def _left(reactor: Any) -> list[Any]:
    return [
        each
        for each in (*reactor.getReaders(), *reactor.getWriters())
        if each not in reactor._internalReaders
    ]


def _due(reactor: Any) -> list[Any]:
    return [call for call in reactor.getDelayedCalls() if call.getTime() <= reactor.seconds()]

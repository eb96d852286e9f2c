"""A reactor of each kind that Linux has, iterated by hand so that several can coexist."""

from __future__ import annotations

import asyncio
import atexit
import functools
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


@functools.cache
def reactor_of_kind(kind: str) -> Any:
    return REACTORS[kind]()


def turn(reactor: Any, seconds: float = 0) -> None:
    """Run one iteration of the reactor; without an event, it waits for ``seconds``."""
    if isinstance(reactor, AsyncioSelectorReactor):
        loop = reactor._asyncioEventloop
        loop.call_later(seconds, loop.stop) if seconds else loop.call_soon(loop.stop)
        loop.run_forever()
    else:
        reactor.iterate(seconds)

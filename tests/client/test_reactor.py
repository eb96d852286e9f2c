"""The client's reactor."""

from __future__ import annotations

import os
import socket

import pytest

from tests.client.bench import Bench


def test_descriptors_above_1023(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that select(2) does not support makes the reactor wait as Twisted's does."""

    def refuse(*_: object) -> None:
        raise ValueError("filedescriptor out of range in select()")

    bench = Bench()
    monkeypatch.setattr("select.select", refuse)
    called: list[bool] = []
    bench.reactor.callLater(0.01, called.append, True)
    bench.until(lambda: called)


class Reader:
    """Reads a byte, and reports it."""

    def __init__(self, sock: socket.socket, called: list[Reader]) -> None:
        self.sock = sock
        self.fileno = sock.fileno
        self.called = called

    def logPrefix(self) -> str:
        return "reader"

    def doRead(self) -> None:
        self.called.append(self)

    def connectionLost(self, reason: object) -> None:
        self.called.append(self)


def test_event_of_a_closed_descriptor() -> None:
    """An event of a descriptor that is closed in the same turn does not reach the next owner."""
    bench = Bench()
    called: list[Reader] = []
    ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    spare, end = socket.socketpair()

    class Replacing(Reader):
        def doRead(self) -> None:
            super().doRead()
            [other] = {*replacing} - {self}
            for each in (self, other):
                bench.reactor.removeReader(each)
            new.sock = socket.socket(fileno=os.dup2(spare.fileno(), other.sock.detach()))
            new.fileno = new.sock.fileno
            bench.reactor.addReader(new)

    new = Reader(spare, called)
    replacing = [Replacing(each, called) for each in ours]
    for reader, peer in zip(replacing, theirs, strict=True):
        bench.reactor.addReader(reader)
        peer.close()
    bench.until(lambda: called)
    assert new not in called
    end.send(b"!")
    bench.until(lambda: new in called)
    bench.reactor.removeReader(new)
    for sock in (*ours, spare, end, new.sock):
        sock.close()

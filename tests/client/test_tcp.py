"""Connections to addresses: one attempt, its failures, several addresses, and UNIX sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionLost
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from echod.client.connector import ConnectAttempt, Connector
from echod.client.errors import error_word
from echod.client.target import parse_target
from tests.client.bench import Bench
from tests.client.memory import silent_port


def out_of_descriptors(*_: object) -> None:
    raise OSError(24, "Too many open files")


def test_log_prefix(bench: Bench) -> None:
    """Log messages about the client's readers and writers have the name of the command."""
    reader = bench.reader(10)
    assert reader.logPrefix() == "echod-client"
    attempt = ConnectAttempt(bench.reactor, socket.AF_INET, ("127.0.0.1", 1))
    assert attempt.logPrefix() == "echod-client"
    reader.connectionLost(Failure(ConnectionLost()))
    reader.close()


def test_connect_fails_at_once(bench: Bench) -> None:
    """A connect(2) that fails immediately fails the attempt with its error."""
    # TCP connects to no broadcast address, not even to that of loopback.
    attempt = ConnectAttempt(bench.reactor, socket.AF_INET, ("127.255.255.255", 9))
    with pytest.raises(OSError, match=r"."):
        bench.result(attempt.connect(None))


def test_no_descriptor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor for the socket, the attempt raises."""
    monkeypatch.setattr("echod.client.sockets.socket.socket", out_of_descriptors)
    attempt = ConnectAttempt(bench.reactor, socket.AF_INET, ("127.0.0.1", 1))
    with pytest.raises(OSError, match="Too many open files"):
        attempt.connect(None)


def test_no_descriptor_for_the_reactor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor for the reactor's duplicate, the attempt fails."""
    monkeypatch.setattr(bench.reactor, "adoptStreamConnection", out_of_descriptors)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempt = ConnectAttempt(bench.reactor, socket.AF_INET, listener.getsockname())
        with pytest.raises(OSError, match="Too many open files"):
            bench.result(attempt.connect(None))
    assert attempt.fileno() == -1


def test_timeout(bench: Bench) -> None:
    """An attempt without an answer is cancelled after the timeout, and its socket closed."""
    with silent_port() as target:
        connector = Connector(bench.reactor, parse_target(target), 0.1)
        reader = bench.reader(10)
        bench.result(Deferred.fromCoroutine(connector.resolve()))
        with pytest.raises(defer.TimeoutError):
            bench.result(Deferred.fromCoroutine(connector.channel(reader)))
        reader.close()


def test_second_address(bench: Bench) -> None:
    """The first address that accepts is used, and all later connections go there."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        connector = Connector(bench.reactor, parse_target("127.0.0.1:7"), 1.0)
        good = (socket.AF_INET, listener.getsockname())
        connector._addresses = [(socket.AF_INET, unused.getsockname()), good]
        reader = bench.reader(10)
        for _ in range(2):
            channel = bench.result(Deferred.fromCoroutine(connector.channel(reader)))
            assert connector._addresses == [good]
            channel.abort()
            bench.result(channel.ended)
        reader.close()


def test_cancelled(bench: Bench) -> None:
    """A cancelled connect does not go on to the next address."""
    with silent_port() as target:
        connector = Connector(bench.reactor, parse_target(target), 10.0)
        bench.result(Deferred.fromCoroutine(connector.resolve()))
        connector._addresses *= 2
        connecting = Deferred.fromCoroutine(connector.connect(None))
        connecting.cancel()
        with pytest.raises(CancelledError):
            bench.result(connecting)


def test_full_backlog(bench: Bench, tmp_path: Path) -> None:
    """A UNIX socket with a full backlog is tried until it has space, or until the timeout."""
    path = str(tmp_path / "socket")
    reader = bench.reader(10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        connectors = [Connector(bench.reactor, parse_target(f"unix:{path}"), 1.0) for _ in range(3)]
        waits = [Deferred.fromCoroutine(each.channel(reader)) for each in connectors]
        first = bench.result(waits.pop(0))
        bench.result(deferLater(bench.reactor, 0.05))
        assert not any(each.called for each in waits)
        listener.accept()[0].close()
        channel = bench.result(waits.pop(0))
        assert first.connect_seconds < 0.05 <= channel.connect_seconds
        with pytest.raises(ConnectingCancelledError) as error:
            bench.result(waits.pop(0))
        assert error_word(error.value) == "timed_out"
    for each in (first, channel):
        each.abort()
        bench.result(each.ended)
    reader.close()


def test_no_socket(bench: Bench, tmp_path: Path) -> None:
    """A path that is no socket is not tried again."""
    connector = Connector(bench.reactor, parse_target(f"unix:{tmp_path}"), 10.0)
    with pytest.raises(ConnectError):
        bench.result(Deferred.fromCoroutine(connector.channel(bench.reader(10))))

"""Listeners with faults: what they serve, and with which factory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from echod.daemon.errors import CannotServe
from echod.daemon.listeners.kinds import echo_listener
from echod.daemon.listeners.systemd import PassedListener
from echod.daemon.tap import set_plan
from echod.factory import EchoFactory
from echod.faultdatagrams import FaultyDatagramPort
from echod.faultplan import NON_CA_TLS, Plan
from echod.faults import DATAGRAM, STREAM
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from echod.proxy import ProxyFactory
from echod.udp import EchoDatagrams
from tests.authority import Authority
from tests.coroutines import now
from tests.reactors import reactor_of_kind


def faulty(description: str, reactor: Any, passed: Any = ()) -> Any:
    """Return a listener whose plan has no rules."""
    datagrams = EchoDatagrams(Clock())
    listener = echo_listener(reactor, datagrams, description, list(passed), "--faulty")
    assert listener.option == f"--faulty {description!r}"
    set_plan(listener, Plan(), 0)
    return listener


def served(listener: Any) -> Any:
    """Listen, and return the factory of the port, and the factory beside it."""
    beside = EchoFactory(clock=Clock())
    now(listener.listen(beside))
    [(_, factory, *_)] = listener.reactor.tcpServers
    return factory, beside


def test_streams() -> None:
    """A stream port has a factory with faults, which shares the limits of the other ports."""
    listener = faulty("tcp:7", MemoryReactorClock())
    factory, beside = served(listener)
    assert isinstance(factory, FaultyEchoFactory)
    assert factory.faults is listener.faults
    assert factory.registry is beside.registry
    assert factory.faults.serves == STREAM


def test_behind_a_proxy() -> None:
    """The PROXY header comes before the faults."""
    factory, _ = served(faulty("haproxy:tcp:7", MemoryReactorClock()))
    assert isinstance(factory, ProxyFactory)


def test_tls(tmp_path: Path) -> None:
    """A TLS port has the faults of TLS."""
    key, certificate = Authority(tmp_path).issue("server")
    description = f"ssl:7:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    listener = faulty(description, MemoryReactorClock())
    factory, _ = served(listener)
    assert isinstance(factory, FaultyTLSFactory)
    assert listener.faults.serves == NON_CA_TLS


def test_datagrams() -> None:
    """A UDP port has the faults of datagrams."""
    listener = faulty("udp:0:interface=127.0.0.1", reactor_of_kind("select"))
    [port] = now(listener.listen(EchoFactory()))
    port.stopListening()
    assert isinstance(port, FaultyDatagramPort)
    assert listener.faults.serves == DATAGRAM


def test_passed() -> None:
    """Passed sockets serve streams or datagrams; both cannot have one plan."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
    ):
        assert PassedListener("-", None, [stream, stream]).serves == STREAM
        assert PassedListener("-", None, [datagram]).serves == DATAGRAM
        both = PassedListener("--faulty 'systemd:name=a'", None, [stream, datagram])
        with pytest.raises(CannotServe, match="'systemd:name=a': it names stream and datagram"):
            set_plan(both, Plan(), 0)

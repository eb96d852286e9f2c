"""Constructors refuse arguments of a wrong type or out of bounds with a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from echod import EchoClientFactory, EchoFactory, ProxyFactory, broadcast
from echod.client.protocol import EchoClient
from echod.testing import MemoryNetwork, Peer
from echod.tls import TLSFactory
from echod.udp import DatagramEcho, EchoDatagrams
from echod.udprules import Rules


def listening() -> MemoryNetwork:
    network = MemoryNetwork()
    network.server_endpoint().listen(EchoFactory())
    return network


def client() -> EchoClient:
    return listening().client_endpoint().connect(EchoClientFactory()).result


def drain(deadline: Any) -> object:
    return EchoFactory().drain(deadline)


TIMEOUTS = ("idle_timeout", "stall_timeout", "handshake_timeout")
COUNTS = ("max_connections", "max_connections_per_peer")

TYPES: list[tuple[str, Callable[..., object], dict[str, Any]]] = [
    ("observer", EchoFactory, {"observer": 3}),
    ("clock", EchoFactory, {"clock": 3}),
    ("clock", EchoFactory, {"clock": Clock}),
    ("fast_path", EchoFactory, {"fast_path": "no"}),
    *((name, EchoFactory, {name: value}) for name in COUNTS for value in (1.5, "5", True)),
    *((name, EchoFactory, {name: value}) for name in TIMEOUTS for value in ("5", True, 1j)),
    ("deadline", drain, {"deadline": "5"}),
    ("broadcast", lambda second: broadcast(print, second), {"second": 3}),
    ("clock", EchoClientFactory, {"clock": 3}),
    ("clock", EchoClient, {"clock": 3}),
    ("data", client().echo, {"data": "text"}),
    ("data", client().echo, {"data": 3}),
    ("timeout", client().echo, {"data": b"", "timeout": "5"}),
    ("factory", ProxyFactory, {"factory": Factory()}),
    ("factory", ProxyFactory, {"factory": EchoFactory}),
    ("factory", TLSFactory, {"factory": Factory(), "context": print}),
    ("context", TLSFactory, {"factory": EchoFactory(), "context": "cert.pem"}),
    ("clock", EchoDatagrams, {"clock": None}),
    ("observer", EchoDatagrams, {"clock": Clock(), "observer": 3}),
    ("rules", EchoDatagrams, {"clock": Clock(), "rules": 100}),
    ("datagrams", DatagramEcho, {"datagrams": Clock()}),
    ("rate", Rules, {"rate": "100"}),
    ("capacity", MemoryNetwork, {"capacity": 1e3}),
    ("amount", MemoryNetwork().advance, {"amount": "1"}),
    ("port", MemoryNetwork().server_endpoint, {"port": "7"}),
    ("count", Peer().read, {"count": 1.5}),
    ("count", Peer().when_received, {"count": "5"}),
]

VALUES: list[tuple[str, Callable[..., object], dict[str, Any]]] = [
    *((name, EchoFactory, {name: value}) for name in COUNTS for value in (0, -1)),
    *(
        (name, EchoFactory, {name: value})
        for name in TIMEOUTS
        for value in (0, -1, 1e-320, 1e300, math.inf, math.nan)
    ),
    *(("deadline", drain, {"deadline": value}) for value in (-1, math.inf, math.nan)),
    ("timeout", client().echo, {"data": b"", "timeout": -1}),
    ("capacity", MemoryNetwork, {"capacity": 0}),
    *(("amount", MemoryNetwork().advance, {"amount": value}) for value in (-1, math.inf)),
    ("port", MemoryNetwork().server_endpoint, {"port": 0}),
    ("port", MemoryNetwork().client_endpoint, {"port": 65536}),
    ("host", MemoryNetwork().server_endpoint, {"host": "localhost"}),
    ("host", MemoryNetwork().client_endpoint, {"host": "::1"}),
    ("source", MemoryNetwork().client_endpoint, {"source": "here"}),
    ("count", Peer().read, {"count": 0}),
    ("count", Peer().when_received, {"count": -1}),
]


class ArgumentTests(SynchronousTestCase):
    def test_type(self) -> None:
        """An argument of a wrong type raises TypeError, which names the argument."""
        for name, call, arguments in TYPES:
            error = self.assertRaises(TypeError, call, **arguments)
            self.assertRegex(str(error), f"^{name} .+$")

    def test_value(self) -> None:
        """A value out of bounds raises ValueError, which names the argument."""
        for name, call, arguments in VALUES:
            error = self.assertRaises(ValueError, call, **arguments)
            self.assertRegex(str(error), f"^{name} .+$")

    def test_numbers(self) -> None:
        """Timeouts may be whole numbers or fractions of seconds."""
        for arguments in [
            dict.fromkeys(TIMEOUTS, 5),
            dict.fromkeys(TIMEOUTS, 0.001),
            {"clock": Clock()},
        ]:
            self.assertTrue(EchoFactory(**arguments))

    def test_second_network(self) -> None:
        """A factory that listens on one network cannot listen on another."""
        over_tls = EchoFactory()
        behind_proxy = EchoFactory()
        for factory, again in (
            (EchoFactory(),) * 2,
            (TLSFactory(over_tls, print), over_tls),  # type: ignore[arg-type]
            (ProxyFactory(behind_proxy), behind_proxy),
        ):
            network = MemoryNetwork()
            network.server_endpoint(7).listen(factory)
            network.server_endpoint(8).listen(again)
            with self.assertRaisesRegex(ValueError, "another reactor: make a factory for each"):
                MemoryNetwork().server_endpoint().listen(again)

    def test_second_reactor(self) -> None:
        """A connection on a second reactor is reset, also where a PROXY header would come first."""
        for kind in [lambda factory: factory, ProxyFactory]:
            factory = EchoFactory()
            MemoryNetwork().server_endpoint().listen(factory)
            protocol = kind(factory).buildProtocol(None)
            transport = StringTransport()
            transport.reactor = MemoryNetwork()
            protocol.makeConnection(transport)
            self.assertEqual(factory.connections, set())
            self.assertTrue(transport.disconnected)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

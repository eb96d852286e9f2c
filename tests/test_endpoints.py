"""What ``--listen`` describes becomes the right listener, or one clear line."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import endpoints
from echod.daemon.endpoints import ProxyListener, echo_listener
from echod.daemon.listening import EndpointListener, UDPListener
from echod.daemon.options import CannotServe
from echod.daemon.passed import PassedListener
from echod.daemon.unixsockets import UNIXListener
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from tests.support import now


class EchoListenerTests(SynchronousTestCase):
    def listener(self, description: str) -> Any:
        self.reactor: Any = MemoryReactor()
        datagrams: Any = None
        return echo_listener(self.reactor, datagrams, description)

    def test_kinds(self) -> None:
        """Each kind of endpoint has its listener, in whatever case it is written."""
        for description, kind in (
            ("tcp:7", EndpointListener),
            (r"tcp6:7:interface=\:\:1", EndpointListener),
            ("udp:7", UDPListener),
            ("UDP:7", UDPListener),
            ("unix:/run/x", UNIXListener),
            ("UNIX:/run/x:mode=660", UNIXListener),
            ("haproxy:tcp:7", ProxyListener),
            ("HAProxy:TCP6:7", ProxyListener),
            ("haproxy:unix:/run/x", ProxyListener),
        ):
            self.assertIs(type(self.listener(description)), kind)

    def test_behind_a_proxy(self) -> None:
        """Behind haproxy: it listens as without, and reads the header first."""
        listener = self.listener("haproxy:tcp:7:interface=192.0.2.1:backlog=5")
        self.assertFalse(listener.passed)
        now(listener.listen(EchoFactory()))
        [(port, factory, backlog, interface)] = self.reactor.tcpServers
        self.assertEqual((port, backlog, interface), (7, 5, "192.0.2.1"))
        self.assertIsInstance(factory, ProxyFactory)

    def test_not_behind_a_proxy(self) -> None:
        """What would not see the header first cannot stand behind haproxy:."""
        for behind in ("", "ssl:7", "udp:7", "haproxy:tcp:7", "quic:7"):
            with self.assertRaises(CannotServe) as caught:
                self.listener(f"haproxy:{behind}")
            line = str(caught.exception)
            self.assertIn(f"--listen 'haproxy:{behind}': haproxy: goes before one of ", line)

    def test_systemd(self) -> None:
        """What systemd passed stays its own, behind a proxy too; a datagram socket is no stream."""

        def listener_of(description: str, sock: socket.socket) -> Any:
            found = SimpleNamespace(endpoint=SimpleNamespace(fileno=sock.detach()))
            self.patch(endpoints, "EndpointListener", lambda *_: found)
            return self.listener(description)

        for description in ("systemd:domain=INET:index=0", "HAProxy:systemd:domain=INET:index=0"):
            listener = listener_of(description, socket.create_server(("127.0.0.1", 0)))
            self.assertTrue(listener.passed)
            inner = getattr(listener, "_listener", listener)
            self.assertIsInstance(inner, PassedListener)
            inner._socket.close()
            with self.assertRaises(CannotServe) as caught:
                listener_of(description, socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.assertIn(f"--listen {description!r}: that is a datagram", str(caught.exception))

"""Listen on TCP: addresses, free ports, and errors that say what to do."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogEvent, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import errors as daemon_errors
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import base
from echod.daemon.listeners.base import ATTEMPTS, BACKLOG
from echod.daemon.listeners.kinds import ON_LOOPBACK, make_listener
from echod.daemon.listeners.tcp import TCPListener
from echod.factory import EchoFactory
from tests.coroutines import now


class FakePort:
    def __init__(self, host: Any) -> None:
        self._host = host
        self.listening = True

    def getHost(self) -> Any:
        return self._host

    def stopListening(self) -> None:
        self.listening = False


class FakeReactor(MemoryReactor):
    """Fails as ``errors`` says, and gives out free ports in ascending order."""

    def __init__(self, errors: dict[tuple[str, int], int]) -> None:
        super().__init__()
        self.errors = errors
        self.free = 50000
        self.opened: list[FakePort] = []

    def listenTCP(self, port: Any, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        assert backlog == BACKLOG
        for where in ((interface, port), (interface, -1)):
            if where in self.errors:
                number = self.errors[where]
                raise CannotListenError(interface, port, OSError(number, os.strerror(number)))
        if port == 0:
            self.free += 1
            port = self.free
        address = IPv6Address if ":" in interface else IPv4Address
        self.opened.append(FakePort(address("TCP", interface, port)))
        return self.opened[-1]


class TCPListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        self.patch(base.log, "observer", self.events.append)

    def listen(self, port: int, *interfaces: str, **errors: Any) -> list[tuple[str, int]]:
        self.reactor = FakeReactor(errors.get("errors", {}))
        listener = TCPListener("", self.reactor, port, interfaces)
        ports = now(listener.listen(EchoFactory()))
        return [(port.getHost().host, port.getHost().port) for port in ports]

    def refused(self, port: int, *interfaces: str, **errors: Any) -> str:
        line = str(self.assertRaises(CannotServe, self.listen, port, *interfaces, **errors))
        self.assertEqual([port for port in self.reactor.opened if port.listening], [])
        self.assertTrue(line.isprintable(), line)
        return line

    def test_default(self) -> None:
        """By default it listens on both loopback addresses, out of reach of the network."""
        self.assertEqual(self.listen(7), [("127.0.0.1", 7), ("::1", 7)])

    def test_interfaces(self) -> None:
        """It listens on the given addresses alone."""
        self.assertEqual(self.listen(7, "0.0.0.0"), [("0.0.0.0", 7)])

    def test_free_port(self) -> None:
        """Port 0 takes one free port, the same on each address."""
        self.assertEqual(self.listen(0), [("127.0.0.1", 50001), ("::1", 50001)])

    def test_free_port_in_use_on_next_address(self) -> None:
        """If a free port is in use on the next address, another one is tried."""
        taken = {("::1", 50001): errno.EADDRINUSE, ("::1", 50002): errno.EADDRINUSE}
        self.assertEqual(self.listen(0, errors=taken), [("127.0.0.1", 50003), ("::1", 50003)])
        self.assertEqual([port.listening for port in self.reactor.opened], [False] * 2 + [True] * 2)

    def test_no_free_port(self) -> None:
        """After a number of attempts it gives up."""
        line = self.refused(0, errors={("::1", -1): errno.EADDRINUSE})
        self.assertIn("--port 0", line)
        self.assertEqual(len(self.reactor.opened), ATTEMPTS)

    def test_no_ipv6(self) -> None:
        """On a machine without IPv6 it logs one line, and serves IPv4."""
        for number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            self.events.clear()
            ports = self.listen(7, errors={("::1", -1): number})
            self.assertEqual(ports, [("127.0.0.1", 7)])
            self.assertEqual(
                [formatEvent(event) for event in self.events],
                ["this machine has no IPv6: serving IPv4 only"],
            )

    def test_missing_address(self) -> None:
        """A given address that the machine does not have is an error."""
        line = self.refused(7, "::1", errors={("::1", -1): errno.EADDRNOTAVAIL})
        self.assertIn("--interface: cannot listen on tcp [::1]:7: ", line)
        self.assertIn("this machine has no such address", line)

    def test_sandbox(self) -> None:
        """If a sandbox forbids IP sockets, the error names the sandbox and the socket units."""
        self.patch(daemon_errors, "ipv4_is_forbidden", lambda: True)
        for port, interfaces, option in ((7, [], "--port"), (7, ["192.0.2.1"], "--interface")):
            errors = {("127.0.0.1", 7): errno.EAFNOSUPPORT, ("192.0.2.1", 7): errno.EAFNOSUPPORT}
            line = self.refused(port, *interfaces, errors=errors)
            self.assertIn(f" {option}: cannot listen on tcp ", line)
            self.assertIn("the sandbox of echod.service allows no port of its own (Restrict", line)
            self.assertIn("name the port in echod.socket", line)

    def test_in_use(self) -> None:
        """If a port is in use, no port stays open, and the error says what to do."""
        line = self.refused(7, errors={("::1", 7): errno.EADDRINUSE})
        self.assertIn("--port: cannot listen on tcp [::1]:7: address already in use: ", line)
        self.assertIn("stop the process that listens there", line)

    def test_privileged_port(self) -> None:
        """The error about a privileged port names the capability."""
        line = self.refused(7, errors={("127.0.0.1", 7): errno.EACCES})
        self.assertIn("tcp 127.0.0.1:7: permission denied", line)
        self.assertIn("CAP_NET_BIND_SERVICE", line)


class TCPDescriptionTests(SynchronousTestCase):
    def listener(self, description: str, **hosts: Any) -> Any:
        return make_listener(MemoryReactor(), description, "--listen", **hosts)

    def test_descriptions(self) -> None:
        """Parameters have names, or Twisted's order; the default is every address."""
        for description, port, interface, backlog in (
            ("tcp:7", 7, "0.0.0.0", BACKLOG),
            ("tcp:port=7:interface=192.0.2.1", 7, "192.0.2.1", BACKLOG),
            ("tcp:7:192.0.2.1:3", 7, "192.0.2.1", 3),
            ("TCP:7:backlog=3", 7, "0.0.0.0", 3),
            (r"tcp:7:interface=\:\:1", 7, "::1", BACKLOG),
            ("tcp6:7", 7, "::", BACKLOG),
            (r"tcp6:7:3:\:\:1", 7, "::1", 3),
            (r"tcp6:0:interface=fe80\:\:1%lo", 0, "fe80::1%lo", BACKLOG),
        ):
            listener = self.listener(description)
            found = listener.port, *listener.interfaces, listener.backlog
            self.assertEqual(found, (port, interface, backlog), description)

    def test_default(self) -> None:
        """With the defaults of the metrics, it is on loopback."""
        for description, interface in (
            ("tcp:9862", "127.0.0.1"),
            ("tcp6:9862", "::1"),
            ("tcp6:9862:5", "::1"),
            ("tcp:9862:interface=0.0.0.0", "0.0.0.0"),
        ):
            listener = self.listener(description, hosts=ON_LOOPBACK)
            self.assertEqual(listener.interfaces, [interface])

    def test_malformed(self) -> None:
        """A mistake is one line that says what is wrong, and what the option takes."""
        for description, why in (
            ("tcp", "it has no port"),
            ("tcp:http", "port takes a whole number from 0 to 65535, not 'http'"),
            ("tcp:65536", "not '65536'"),
            ("tcp:7:interface=", "interface= is empty"),
            ("tcp:7:", "interface= is empty"),
            ("tcp:7::5", "interface= is empty"),
            ("tcp6:7:5:", "interface= is empty"),
            ("tcp:7:backlog=", "backlog= is empty"),
            ("tcp:7:interface=localhost", "interface= takes an IPv4 or IPv6 address"),
            ("tcp:7:backlog=many", "backlog= takes a whole number from 0 to 2147483647"),
            ("tcp:1:192.0.2.1:3:4", "there is no parameter '4'"),
            ("tcp:7:foo=bar", "there is no parameter 'foo=bar'"),
            ("tcp:7:port=8", "port is given twice"),
            ("tcp6:7:interface=127.0.0.1", "interface= takes an IPv6 address for tcp6:"),
            (r"tcp6:7:interface=fe80\:\:1", "with its link, as in fe80::1%eth0"),
            (r"tcp6:7:interface=fe80\:\:1%nolink", "takes a link of this machine"),
        ):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(why, line)
            self.assertIn("; it takes tcp", line)

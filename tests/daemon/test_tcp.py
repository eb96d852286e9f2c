"""Where the daemon listens, and what it says where it cannot."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogEvent, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import errors as daemon_errors
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import tcp as listening
from echod.daemon.listeners.description import stream_listener
from echod.daemon.listeners.tcp import (
    ATTEMPTS,
    BACKLOG,
    ON_LOOPBACK,
    EndpointListener,
    TCPListener,
    UDPListener,
    tcp_listener,
)
from echod.factory import EchoFactory
from echod.udp import EchoDatagrams
from tests.coroutines import now
from tests.daemon.failing_binds import expect_failing_binds
from tests.reactors import reactor_of_kind


class FakePort:
    def __init__(self, host: Any) -> None:
        self._host = host
        self.listening = True

    def getHost(self) -> Any:
        return self._host

    def stopListening(self) -> None:
        self.listening = False


class FakeReactor(MemoryReactor):
    """Listens on what it is told to have, and gives out free ports in order."""

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
        self.patch(listening.log, "observer", self.events.append)

    def listen(self, port: int, *interfaces: str, **errors: Any) -> list[tuple[str, int]]:
        self.reactor = FakeReactor(errors.get("errors", {}))
        listener = TCPListener(self.reactor, port, interfaces)
        ports = now(listener.listen(EchoFactory()))
        return [(port.getHost().host, port.getHost().port) for port in ports]

    def refused(self, port: int, *interfaces: str, **errors: Any) -> str:
        line = str(self.assertRaises(CannotServe, self.listen, port, *interfaces, **errors))
        self.assertEqual([port for port in self.reactor.opened if port.listening], [])
        self.assertTrue(line.isprintable(), line)
        return line

    def test_default(self) -> None:
        """By default it listens on both loopbacks, and nobody on the network gets in."""
        self.assertEqual(self.listen(7), [("127.0.0.1", 7), ("::1", 7)])

    def test_interfaces(self) -> None:
        """It listens on the interfaces that it is told."""
        self.assertEqual(self.listen(7, "0.0.0.0"), [("0.0.0.0", 7)])

    def test_free_port(self) -> None:
        """Port 0 is one free port, the same everywhere."""
        self.assertEqual(self.listen(0), [("127.0.0.1", 50001), ("::1", 50001)])

    def test_free_port_that_is_taken_elsewhere(self) -> None:
        """A free port that is taken on the next interface is given up for another."""
        taken = {("::1", 50001): errno.EADDRINUSE, ("::1", 50002): errno.EADDRINUSE}
        self.assertEqual(self.listen(0, errors=taken), [("127.0.0.1", 50003), ("::1", 50003)])
        self.assertEqual([port.listening for port in self.reactor.opened], [False] * 2 + [True] * 2)

    def test_no_free_port(self) -> None:
        """Where there is no end to that, it ends all the same."""
        line = self.refused(0, errors={("::1", -1): errno.EADDRINUSE})
        self.assertIn("--port 0", line)
        self.assertEqual(len(self.reactor.opened), ATTEMPTS)

    def test_no_ipv6(self) -> None:
        """Where the machine has no IPv6 it says so in one line, and serves IPv4."""
        for number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            self.events.clear()
            ports = self.listen(7, errors={("::1", -1): number})
            self.assertEqual(ports, [("127.0.0.1", 7)])
            self.assertEqual(
                [formatEvent(event) for event in self.events],
                ["this machine has no IPv6: serving IPv4 only"],
            )

    def test_ipv6_that_was_asked_for(self) -> None:
        """Where IPv6 was asked for and is not there, that is an error."""
        line = self.refused(7, "::1", errors={("::1", -1): errno.EADDRNOTAVAIL})
        self.assertIn("--interface: cannot listen on tcp [::1]:7: ", line)
        self.assertIn("this machine has no such address", line)

    def test_sandbox(self) -> None:
        """Where no IP socket is allowed at all, the line names the sandbox and the socket units."""
        self.patch(daemon_errors, "ipv4_is_forbidden", lambda: True)
        for port, interfaces, option in ((7, [], "--port"), (7, ["192.0.2.1"], "--interface")):
            errors = {("127.0.0.1", 7): errno.EAFNOSUPPORT, ("192.0.2.1", 7): errno.EAFNOSUPPORT}
            line = self.refused(port, *interfaces, errors=errors)
            self.assertIn(f" {option}: cannot listen on tcp ", line)
            self.assertIn("the sandbox of echod.service allows no port of its own (Restrict", line)
            self.assertIn("name the port in echod.socket", line)

    def test_in_use(self) -> None:
        """A port in use: nothing stays open, and the line says what to do."""
        line = self.refused(7, errors={("::1", 7): errno.EADDRINUSE})
        self.assertIn("--port: cannot listen on tcp [::1]:7: address already in use: ", line)
        self.assertIn("stop what listens there", line)

    def test_rights(self) -> None:
        """A port that needs rights is named with the right that it needs."""
        line = self.refused(7, errors={("127.0.0.1", 7): errno.EACCES})
        self.assertIn("tcp 127.0.0.1:7: permission denied", line)
        self.assertIn("CAP_NET_BIND_SERVICE", line)


class UDPListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = reactor_of_kind("select")
        self.datagrams = EchoDatagrams(Clock())

    def listener(self, description: str) -> Any:
        return UDPListener(self.reactor, self.datagrams, description)

    def listen(self, description: str) -> list[tuple[str, int]]:
        ports = now(self.listener(description).listen(EchoFactory()))
        for port in ports:
            self.addCleanup(port.stopListening)
        return [(port.getHost().host, port.getHost().port) for port in ports]

    def test_where(self) -> None:
        """It is on both loopbacks, or on the interface that it is told."""
        [(host, one), (other_host, other)] = self.listen("udp:0")
        self.assertEqual((host, other_host, one), ("127.0.0.1", "::1", other))
        [(host, _)] = self.listen("UDP:port=0:interface=127.0.0.2")
        self.assertEqual(host, "127.0.0.2")
        [(host, _)] = self.listen(r"udp:0:interface=\:\:1")
        self.assertEqual(host, "::1")

    def test_wrong(self) -> None:
        """What is no such description is told in one line, with what is."""
        for description, why in (
            ("udp:x", "a port takes a whole number from 0 to 65535, not 'x'"),
            ("udp:65536", "a port takes a whole number from 0 to 65535, not '65536'"),
            ("udp:7:127.0.0.1", "there is no parameter '127.0.0.1'"),
            ("udp:7:interface=", "interface= is empty"),
            ("udp:7:interface=127.0.0.1:interface=127.0.0.2", "it has interface= twice"),
            (
                "udp:7:interface=lo",
                "interface= takes an IPv4 or IPv6 address of this machine, not 'lo'",
            ),
        ):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(f"--listen {description!r}: {why}; it takes udp:PORT or udp:", line)

    def test_in_use(self) -> None:
        """A port in use: nothing stays open, and the line says what to do."""
        [(_, number)] = self.listen(r"udp:0:interface=\:\:1")
        line = str(self.assertRaises(CannotServe, self.listen, f"udp:{number}"))
        self.assertIn(f"cannot listen on udp [::1]:{number}: address already in use: stop", line)
        self.assertEqual(len(self.datagrams.ports), 1)

    def test_no_such_family(self) -> None:
        """An address of a family that the kernel does not have is told likewise."""

        def none(*_: object) -> None:
            raise OSError(errno.EAFNOSUPPORT, "no such family")

        self.patch(socket, "socket", none)
        line = str(self.assertRaises(CannotServe, self.listen, "udp:0:interface=127.0.0.1"))
        self.assertIn("cannot listen on udp 127.0.0.1:0: no such family", line)


class EndpointListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        expect_failing_binds(self)

    def listener(self, description: str) -> Any:
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        return stream_listener(reactor, description, f"--listen {description!r}")

    def listen(self, description: str) -> Any:
        return now(self.listener(description).listen(EchoFactory()))

    def test_listen(self) -> None:
        """It listens where the description says."""
        reactor = MemoryReactor()
        factory = EchoFactory()
        listener = EndpointListener(reactor, "tcp:7:interface=192.0.2.1", "--listen")
        self.assertEqual(len(now(listener.listen(factory))), 1)
        self.assertEqual(reactor.tcpServers, [(7, factory, 50, "192.0.2.1")])
        line = str(self.assertRaises(CannotServe, EndpointListener, reactor, "tcp:7:a:b:c", "--x"))
        self.assertIn("--x: its parts do not fit", line)

    def test_malformed(self) -> None:
        """A description that is no endpoint is answered with what one looks like."""
        for description in ("", "7", "udp:7", "quic:7", "ssl", "fd:3"):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(f"--listen {description!r}: ", line)
            self.assertIn("such as tcp:65432:interface=127.0.0.1", line)
            self.assertTrue(line.isprintable(), line)

    def test_impossible(self) -> None:
        """An endpoint that cannot be listened on is answered with the reason."""
        missing = os.path.join(tempfile.gettempdir(), "no such directory", "socket")
        for description, why in (
            (f"unix:{missing}", "no such file or directory: its directory must exist"),
            ("tcp:0:interface=192.0.2.1", "this machine has no such address"),
        ):
            line = str(self.assertRaises(CannotServe, self.listen, description))
            self.assertIn(f"--listen {description!r}: ", line)
            self.assertIn(why, line)
            self.assertTrue(line.isprintable(), line)

    def test_no_port(self) -> None:
        """An endpoint that "listens" once and for one, such as stdio:, is none to serve on."""

        class Once:
            async def listen(self, factory: Any) -> object:
                return object()

        listener = EndpointListener(MemoryReactor(), "tcp:0", "--listen 'once:'")

        class Failing:
            async def listen(self, factory: Any) -> object:
                raise TypeError("listen() missing 1 required positional argument")

        listener.endpoint = Failing()
        line = str(self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory()))))
        self.assertIn("--listen 'once:': this endpoint cannot be listened on", line)
        listener.endpoint = Once()
        line = str(self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory()))))
        self.assertIn("--listen 'once:': that is no port to listen on", line)

    def test_unix_in_use(self) -> None:
        """A UNIX socket that somebody else listens on is not taken away."""
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as other:
            path = os.path.join(directory, "socket")
            other.bind(path)
            other.listen()
            line = str(self.assertRaises(CannotServe, self.listen, f"unix:{path}:lockfile=0"))
            self.assertIn("address already in use", line)


class TCPDescriptionTests(SynchronousTestCase):
    def listener(self, description: str, **hosts: Any) -> Any:
        return tcp_listener(MemoryReactor(), description, "--listen", **hosts)

    def test_descriptions(self) -> None:
        """Parts have names, or an order, which is Twisted's; the default is every address."""
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
            found = listener._port, *listener._interfaces, listener._backlog
            self.assertEqual(found, (port, interface, backlog), description)

    def test_default(self) -> None:
        """The metrics listen on loopback, where no interface is named."""
        for description, interface in (
            ("tcp:9862", "127.0.0.1"),
            ("tcp6:9862", "::1"),
            ("tcp6:9862:5", "::1"),
            ("tcp:9862:interface=0.0.0.0", "0.0.0.0"),
        ):
            listener = self.listener(description, hosts=ON_LOOPBACK)
            self.assertEqual(listener._interfaces, [interface])

    def test_malformed(self) -> None:
        """Anything else is refused in one line, which says what is wrong and what it takes."""
        for description, why in (
            ("tcp", "a port takes a whole number from 0 to 65535, not ''"),
            ("tcp:http", "a port takes a whole number from 0 to 65535, not 'http'"),
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
            ("tcp:7:port=8", "it has port= twice"),
            ("tcp6:7:interface=127.0.0.1", "interface= takes an IPv6 address for tcp6:"),
            (r"tcp6:7:interface=fe80\:\:1", "with its link, as in fe80::1%eth0"),
            (r"tcp6:7:interface=fe80\:\:1%nolink", "takes a link of this machine"),
        ):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(why, line)
            self.assertIn("; it takes tcp", line)

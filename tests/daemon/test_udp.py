"""Listen on UDP: addresses, and errors that say what to do."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe
from echod.daemon.listeners.kinds import echo_listener
from echod.factory import EchoFactory
from echod.udp import EchoDatagrams
from tests.coroutines import now
from tests.reactors import reactor_of_kind


class UDPListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = reactor_of_kind("select")
        self.datagrams = EchoDatagrams(Clock())

    def listener(self, description: str) -> Any:
        return echo_listener(self.reactor, self.datagrams, description, [])

    def listen(self, description: str) -> list[tuple[str, int]]:
        ports = now(self.listener(description).listen(EchoFactory()))
        for port in ports:
            self.addCleanup(port.stopListening)
        return [(port.getHost().host, port.getHost().port) for port in ports]

    def test_addresses(self) -> None:
        """It listens on both loopback addresses, or on the given one."""
        [(host, one), (other_host, other)] = self.listen("udp:0")
        self.assertEqual((host, other_host, one), ("127.0.0.1", "::1", other))
        [(host, _)] = self.listen("UDP:port=0:interface=127.0.0.2")
        self.assertEqual(host, "127.0.0.2")
        [(host, _)] = self.listen(r"udp:0:interface=\:\:1")
        self.assertEqual(host, "::1")

    def test_malformed(self) -> None:
        """A mistake is one line that says what is wrong, and what the option takes."""
        for description, why in (
            ("udp:x", "port takes a whole number from 0 to 65535, not 'x'"),
            ("udp:65536", "port takes a whole number from 0 to 65535, not '65536'"),
            ("udp:7:127.0.0.1", "there is no parameter '127.0.0.1'"),
            ("udp:7:interface=", "interface= is empty"),
            ("udp:7:interface=127.0.0.1:interface=127.0.0.2", "interface= is given twice"),
            (
                "udp:7:interface=lo",
                "interface= takes an IPv4 or IPv6 address of this machine, not 'lo'",
            ),
        ):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(f"--listen {description!r}: {why}; it takes udp:PORT or udp:", line)

    def test_in_use(self) -> None:
        """If a port is in use, no port stays open, and the error says what to do."""
        [(_, number)] = self.listen(r"udp:0:interface=\:\:1")
        line = str(self.assertRaises(CannotServe, self.listen, f"udp:{number}"))
        self.assertIn(f"cannot listen on udp [::1]:{number}: address already in use: stop", line)
        self.assertEqual(len(self.datagrams.ports), 1)

    def test_no_such_family(self) -> None:
        """If the kernel lacks the address family, the error says so."""

        def none(*_: object) -> None:
            raise OSError(errno.EAFNOSUPPORT, "no such family")

        self.patch(socket, "socket", none)
        line = str(self.assertRaises(CannotServe, self.listen, "udp:0:interface=127.0.0.1"))
        self.assertIn("cannot listen on udp 127.0.0.1:0: no such family", line)

"""Endpoint descriptions of --listen and --metrics: the listener, or a one-line error."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.listeners.kinds import control_listener, echo_listener, metrics_listener
from echod.daemon.listeners.systemd import PassedListener, PassedSocket
from echod.daemon.listeners.tcp import TCPListener
from echod.daemon.listeners.udp import UDPListener
from echod.daemon.listeners.unix import UNIXListener
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from echod.udp import EchoDatagrams
from tests.authority import Authority
from tests.coroutines import now
from tests.daemon.passed_sockets import passed_socket


class EchoListenerTests(SynchronousTestCase):
    def listener(self, description: str, *passed: PassedSocket) -> Any:
        self.reactor: Any = MemoryReactor()
        self.passed = [*passed]
        return echo_listener(self.reactor, EchoDatagrams(Clock()), description, self.passed)

    def refused(self, description: str, *passed: PassedSocket) -> str:
        line = str(self.assertRaises(CannotServe, self.listener, description, *passed))
        option = f"--listen {description!r}: "
        self.assertIn(option, line)
        return line.partition(option)[2]

    def test_kinds(self) -> None:
        """Each kind of endpoint has its listener, in upper and lower case."""
        for description, kind in (
            ("tcp:7", TCPListener),
            (r"tcp6:7:interface=\:\:1", TCPListener),
            ("udp:7", UDPListener),
            ("UDP:7", UDPListener),
            ("unix:/run/x", UNIXListener),
            ("UNIX:/run/x:mode=660", UNIXListener),
            ("haproxy:tcp:7", TCPListener),
            ("HAProxy:TCP6:7", TCPListener),
            ("haproxy:unix:/run/x", UNIXListener),
        ):
            listener = self.listener(description)
            self.assertIs(type(listener), kind)
            self.assertEqual(listener.proxied, "haproxy" in description.lower())

    def test_tls_of_twisted(self) -> None:
        """Twisted's own tls: is refused: it has no half-close, and reads a port as a directory."""
        self.assertIn("echo over TLS is ssl:PORT:", self.refused("tls:0"))

    def test_metrics_over_tls(self) -> None:
        """Metrics over Twisted's own TLS endpoint are on loopback by default, too."""
        with tempfile.TemporaryDirectory() as directory:
            key, certificate = Authority(Path(directory)).issue("server")
            files = f"privateKey={key}:certKey={certificate}"
            for more, interface in (
                ("", "127.0.0.1"),
                (":interface=192.0.2.1", "192.0.2.1"),
            ):
                reactor = MemoryReactor()
                listener = metrics_listener(reactor, f"ssl:9862:{files}{more}", "--metrics")
                now(listener.listen(EchoFactory()))
                self.assertEqual(reactor.sslServers[0][4], interface)
            for more in (":interface=", ":interface=127.0.0.1:interface="):
                line = str(
                    self.assertRaises(
                        CannotServe, metrics_listener, reactor, f"ssl:9862:{files}{more}", "--x"
                    )
                )
                self.assertIn("--x: interface= is empty; it takes ssl:PORT:privateKey=", line)
            file = f"{directory}/\\:interface=192.0.2.1"
            Path(file.replace("\\", "")).write_bytes(Path(key).read_bytes())
            description = f"ssl:9862:privateKey={file}:certKey={certificate}"
            now(metrics_listener(reactor, description, "--metrics").listen(EchoFactory()))
            self.assertEqual(reactor.sslServers[-1][4], "127.0.0.1")

    def test_metrics_over_tls_refused(self) -> None:
        """A file that Twisted refuses is named; for any other mistake the line is general."""
        with tempfile.TemporaryDirectory() as directory:
            key, certificate = Authority(Path(directory)).issue("server")
            files = f"privateKey={key}:certKey={certificate}"
            for description, why in (
                (f"ssl:0:privateKey={directory}/none", f"{directory}/none: no such file"),
                (f"ssl:0:{files}:sslmethod=none", "its parameters do not fit"),
            ):
                line = str(
                    self.assertRaises(
                        CannotServe, metrics_listener, MemoryReactor(), description, "--x"
                    )
                )
                self.assertIn(f"--x: {why}", line)

    def test_control(self) -> None:
        """Control is served on loopback, or on a UNIX socket that is the owner's by default."""
        for description, interface in (
            ("tcp:0", "127.0.0.1"),
            ("TCP:0:interface=127.0.0.2", "127.0.0.2"),
            (r"tcp:0:interface=\:\:1", "::1"),
            ("tcp6:0", "::1"),
            (r"tcp6:0:interface=\:\:ffff\:127.0.0.1", "::ffff:127.0.0.1"),
        ):
            listener: Any = control_listener(MemoryReactor(), description)
            self.assertEqual(listener.interfaces, [interface])
        for description, mode in (("unix:/run/x", 0o600), ("unix:/run/x:mode=660", 0o660)):
            listener = control_listener(MemoryReactor(), description)
            self.assertEqual((listener.path, listener.mode), ("/run/x", mode))

    def test_control_refused(self) -> None:
        """No other machine can connect to the control endpoint, not even by TLS."""
        for description, why in (
            *((f"tcp:0:interface={address}", "") for address in ("0.0.0.0", "192.0.2.1", r"\:\:")),
            *(
                (each, "")
                for each in ("tcp6:0:interface=fe80\\:\\:1%lo", "ssl:0", "udp:0", "", "x")
            ),
            *((each, "") for each in ("haproxy:tcp:0", "systemd:name=control", "9863")),
            ("tcp:x", "port takes a whole number"),
            *(
                ("tcp:", "port is empty"),
                ("unix:", "path is empty"),
                ("unix:x:mode=9", "mode= takes"),
            ),
        ):
            error = self.assertRaises(WrongOption, control_listener, MemoryReactor(), description)
            line = why or "control is served on loopback, such as tcp:9863"
            self.assertIn(f"--control {description!r}: {line}", str(error))

    def test_behind_a_proxy(self) -> None:
        """A listener behind haproxy: listens as without, and reads the header first."""
        listener = self.listener("haproxy:tcp:7:interface=192.0.2.1:backlog=5")
        self.assertFalse(listener.held_by_systemd)
        now(listener.listen(EchoFactory()))
        [(port, factory, backlog, interface)] = self.reactor.tcpServers
        self.assertEqual((port, backlog, interface), (7, 5, "192.0.2.1"))
        self.assertIsInstance(factory, ProxyFactory)

    def test_not_behind_a_proxy(self) -> None:
        """Endpoints whose streams do not begin with the header are refused behind haproxy:."""
        for behind in ("", "ssl:7", "udp:7", "haproxy:tcp:7", "quic:7"):
            self.assertIn("haproxy: goes before one of ", self.refused(f"haproxy:{behind}"))

    def test_systemd(self) -> None:
        """A passed socket is served by its name, behind a proxy too, and removed from the list."""
        for description in ("systemd:name=a", "HAProxy:SystemD:name=a"):
            with socket.create_server(("127.0.0.1", 0)) as sock:
                listener = self.listener(
                    description, passed_socket(sock, "a"), PassedSocket(999, "b")
                )
            self.assertEqual(self.passed, [PassedSocket(999, "b")])
            self.assertEqual((listener.held_by_systemd, listener.tls), (True, None))
            self.assertIsInstance(listener, PassedListener)
            listener.sockets[0].close()

    def test_systemd_datagrams(self) -> None:
        """A datagram socket is served by its name, but not behind a proxy."""
        for description in ("systemd:name=a", "haproxy:systemd:name=a"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                passed = passed_socket(sock, "a")
            if description.startswith("haproxy:"):
                self.assertIn("(a) is a datagram socket: ", self.refused(description, passed))
            else:
                self.listener(description, passed).sockets[0].close()

    def test_wrong_systemd(self) -> None:
        """A mistake is one line that says what is wrong, and what the option takes."""
        for rest, why in (
            ("systemd", "it has no name="),
            ("systemd:", "it has no name="),
            ("systemd:a", "there is no parameter 'a'"),
            ("systemd:name=", "name= is empty"),
            ("systemd:name=a:name=a", "name= is given twice"),
            ("systemd:domain=INET:index=0", "there is no parameter 'domain=INET'"),
        ):
            for description in (rest, f"haproxy:{rest}"):
                line = self.refused(description, PassedSocket(999, "a"))
                takes = "it takes systemd:name=NAME, for all sockets of that name"
                self.assertEqual(line, f"{why}; {takes}")
            line = self.refused("haproxy:systemd:name=b", PassedSocket(999, "a"))
            self.assertTrue(line.startswith("systemd passed no socket with the name 'b' ("))

"""Socket activation: the environment, descriptors, and listeners on passed sockets."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import UNIXAddress
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.client.protocol import EchoClientFactory
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import systemd as module
from echod.daemon.listeners.systemd import (
    PassedListener,
    PassedSocket,
    adopt,
    passed_sockets,
    pop_environment,
    take_named,
)
from echod.factory import EchoFactory
from echod.udp import EchoDatagrams
from tests.coroutines import now
from tests.daemon.passed_sockets import passed_socket
from tests.reactors import reactor_of_kind, turn


class PopEnvironmentTests(SynchronousTestCase):
    def test_popped(self) -> None:
        """The variables are removed, so that no child inherits them; others stay."""
        environ = {"NOTIFY_SOCKET": "@x", "OTHER": "1"}
        self.assertEqual(
            pop_environment(environ, ["NOTIFY_SOCKET", "LISTEN_FDS"]), {"NOTIFY_SOCKET": "@x"}
        )
        self.assertEqual(environ, {"OTHER": "1"})

    def test_popped_by_twisted(self) -> None:
        """Variables that Twisted has popped are read from the initial environment."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        started = Path(directory.name, "environ")
        started.write_bytes(b"OTHER=1\0LISTEN_FDS=2\0ODD\0EMPTY=\0EQUAL=a=b\0\xff=\xff\0")
        names = ["LISTEN_FDS", "EMPTY", "EQUAL"]
        self.assertEqual(
            pop_environment({}, names, str(started)),
            {"LISTEN_FDS": "2", "EMPTY": "", "EQUAL": "a=b"},
        )

    def test_no_initial_environment(self) -> None:
        """If the initial environment is not readable, the current one counts."""
        self.assertEqual(
            pop_environment({"LISTEN_FDS": "2"}, ["LISTEN_FDS"], "/nowhere"), {"LISTEN_FDS": "2"}
        )


class PassedSocketsTests(SynchronousTestCase):
    def refused(self, environ: Mapping[str, str]) -> str:
        line = str(self.assertRaises(CannotServe, passed_sockets, environ, 862))
        self.assertTrue(line.startswith("twistd echod: ") and line.isprintable(), line)
        return line

    def test_no_variables(self) -> None:
        """Without the variables, no socket is passed."""
        self.assertEqual(passed_sockets({}, 862), [])

    def test_named(self) -> None:
        """Descriptors begin at 3, and each has its name."""
        environ = {"LISTEN_PID": "862", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "echod.socket:metrics"}
        self.assertEqual(
            passed_sockets(environ, 862),
            [PassedSocket(3, "echod.socket"), PassedSocket(4, "metrics")],
        )

    def test_unnamed(self) -> None:
        """Without LISTEN_FDNAMES, each socket is named ``unknown``."""
        self.assertEqual(
            passed_sockets({"LISTEN_PID": "862", "LISTEN_FDS": "1"}, 862),
            [PassedSocket(3, "unknown")],
        )

    def test_incomplete_variables(self) -> None:
        """One of the variables without the others is refused."""
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            self.assertIn(f"{name}=1: LISTEN_PID and LISTEN_FDS", self.refused({name: "1"}))

    def test_for_another_process(self) -> None:
        """Sockets for another process are refused, and the error says what to do."""
        for pid in ("863", "", "x"):
            line = self.refused({"LISTEN_PID": pid, "LISTEN_FDS": "1"})
            self.assertIn(f"LISTEN_PID={pid} LISTEN_FDS=1: the sockets are for another", line)
            self.assertIn("exec", line)

    def test_count(self) -> None:
        """The count is a whole number of 1 or more."""
        for count in ("0", "-1", "x", "", "1.5", " 1", "\N{ARABIC-INDIC DIGIT TWO}", "9" * 9):
            line = self.refused({"LISTEN_PID": "862", "LISTEN_FDS": count})
            self.assertIn("LISTEN_FDS is a whole number of 1 or more", line)

    def test_names_that_do_not_fit(self) -> None:
        """The number of names must be that of descriptors."""
        for names, count in (("a:b:c", 3), ("a", 1), ("", 1)):
            line = self.refused({"LISTEN_PID": "862", "LISTEN_FDS": "2", "LISTEN_FDNAMES": names})
            self.assertIn(f"LISTEN_FDNAMES={names}: {count} names for 2 descriptors", line)


class AdoptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log: list[LogEvent] = []
        self.patch(module.log, "observer", self.log.append)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "echo")

    def listening(self, family: int, address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket as systemd holds it."""
        sock = socket.socket(family, kind)
        self.addCleanup(sock.close)
        sock.bind(address)
        if kind != socket.SOCK_DGRAM:
            sock.listen()
        return sock

    def refused(self, sock: socket.socket) -> str:
        return str(self.assertRaises(CannotServe, adopt, [passed_socket(sock)]))

    def test_datagram(self) -> None:
        """If datagrams are not served, a datagram socket is skipped with a warning."""
        stream = self.listening(socket.AF_INET, ("127.0.0.1", 0))
        datagram = self.listening(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
        [sock] = adopt([passed_socket(datagram), passed_socket(stream)])
        sock.close()
        [event] = self.log
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertIn("is a datagram socket, and is not served", formatEvent(event))
        self.assertEqual(adopt([passed_socket(datagram)]), [])

    def test_datagrams(self) -> None:
        """A datagram socket is served, and stays open for the next start."""
        datagram = self.listening(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
        reactor = reactor_of_kind("epoll")
        datagrams = EchoDatagrams(Clock())
        [sock] = adopt([passed_socket(datagram)], datagrams=True)
        self.addCleanup(sock.close)
        listener = PassedListener("-", reactor, [sock], datagrams)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.connect(datagram.getsockname())
        for _ in range(2):
            client.send(b"hello")
            [port] = now(listener.listen(EchoFactory()))
            turn(reactor)
            self.assertEqual(client.recv(9, socket.MSG_DONTWAIT), b"hello")
            port.stopListening()

    def test_not_listening(self) -> None:
        """A connected socket, as Accept=yes passes it, is refused."""
        for sock in socket.socketpair():
            self.addCleanup(sock.close)
            self.assertIn("(echod.socket) does not listen: its unit needs", self.refused(sock))

    def test_other_kinds(self) -> None:
        """Sockets of other kinds are refused."""
        sock = self.listening(socket.AF_UNIX, self.path, socket.SOCK_SEQPACKET)
        self.assertIn("is neither TCP, UDP nor a UNIX stream socket", self.refused(sock))

    def test_no_socket(self) -> None:
        """A descriptor that is closed, or not a socket, is refused."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        [descriptor] = [PassedSocket(reading, "fifo")]
        error = self.assertRaises(CannotServe, adopt, [descriptor])
        self.assertIn("(fifo) is not a socket: socket operation on non-socket", str(error))
        os.close(reading)
        error = self.assertRaises(CannotServe, adopt, [descriptor])
        self.assertIn("(fifo) is not a socket: bad file descriptor", str(error))


class TakeNamedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        for sock in self.sockets:
            self.addCleanup(sock.close)

    def test_all_of_a_name(self) -> None:
        """One listener serves all sockets of the name, and they are removed from the list."""
        one, other, two = self.sockets
        passed = [passed_socket(one, "a"), passed_socket(other, "b"), passed_socket(two, "a")]
        rest = passed[1:2]
        listener = take_named("a", passed, reactor_of_kind("epoll"), "--listen")
        self.assertEqual(passed, rest)
        ports = now(listener.listen(EchoFactory()))
        self.assertEqual(
            [port.getHost().port for port in ports],
            [sock.getsockname()[1] for sock in (one, two)],
        )
        for port in ports:
            port.stopListening()
        for sock in (*listener.sockets, *adopt(rest)):
            sock.close()

    def test_no_such_name(self) -> None:
        """A name without a socket is refused, and the error lists the names there are."""
        for names, left in (((), "none"), (("b", "b", "c"), "b, c")):
            passed = [PassedSocket(3, name) for name in names]
            error = self.assertRaises(CannotServe, take_named, "a", passed, None, "--listen x")
            self.assertIn("--listen x: systemd passed no socket with the name 'a' (", str(error))
            self.assertTrue(str(error).endswith(f"or another option takes it; left: {left}"))

    def test_datagrams_of_a_name(self) -> None:
        """A datagram socket of the name is served, or refused if datagrams are not served."""
        for datagrams in (None, EchoDatagrams(Clock())):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                passed = [passed_socket(self.sockets[0], "a"), passed_socket(sock, "a")]
            if datagrams is None:
                error = self.assertRaises(CannotServe, take_named, "a", passed, None, "--listen")
                self.assertIn("(a) is a datagram socket: give it a socket unit of", str(error))
            else:
                listener = take_named("a", passed, None, "--listen", datagrams)
                self.assertEqual(len(listener.sockets), 2)
                for opened in listener.sockets:
                    opened.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, "abstract"])
@pytest_twisted.ensureDeferred
async def test_served(family: Any, tmp_path: Path) -> None:
    """Clients are served, those in the backlog too; the socket listens on after a stop.

    The file of a UNIX socket stays unchanged.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

    path = tmp_path / "echo"
    where: Any = {"abstract": f"\0{path}", socket.AF_UNIX: str(path)}.get(family)
    with socket.socket(socket.AF_UNIX if where else family) as systemd:
        systemd.bind(where or ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        systemd.listen()
        if family == socket.AF_UNIX:
            path.chmod(0o600)
        host = r"\:\:1" if family == socket.AF_INET6 else "127.0.0.1"
        clients = clientFromString(
            reactor, f"unix:{where}" if where else f"tcp:{host}:{systemd.getsockname()[1]}"
        )
        [sock] = adopt([passed_socket(systemd)])
        assert not sock.get_inheritable()
        listener = PassedListener("-", reactor, [sock])
        assert listener.held_by_systemd
        for _ in range(2):
            factory = EchoFactory()
            early = await clients.connect(EchoClientFactory())
            [port] = await listener.listen(factory)
            assert factory.numPorts == 1
            late = await clients.connect(EchoClientFactory())
            if where:
                assert port.getHost() == UNIXAddress(os.fsencode(where))
            for client in (early, late):
                assert await client.echo(b"hello") == b"hello"
                await client.close()
            await port.stopListening()
            await factory.drain(1)
            assert factory.numPorts == 0
        sock.close()
        if family == socket.AF_UNIX:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

"""Listen on any endpoint of Twisted, and errors that say what to do."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe
from echod.daemon.listeners.base import EndpointListener
from echod.daemon.listeners.kinds import make_listener
from echod.factory import EchoFactory
from tests.coroutines import now
from tests.daemon.failing_binds import expect_failing_binds


class EndpointListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        expect_failing_binds(self)

    def listener(self, description: str) -> Any:
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        return make_listener(reactor, description, f"--listen {description!r}")

    def listen(self, description: str) -> Any:
        return now(self.listener(description).listen(EchoFactory()))

    def test_listen(self) -> None:
        """It listens on the endpoint that is described."""
        reactor = MemoryReactor()
        factory = EchoFactory()
        listener = EndpointListener("--listen", reactor, "tcp:7:interface=192.0.2.1")
        self.assertEqual(len(now(listener.listen(factory))), 1)
        self.assertEqual(reactor.tcpServers, [(7, factory, 50, "192.0.2.1")])
        line = str(self.assertRaises(CannotServe, EndpointListener, "--x", reactor, "tcp:7:a:b:c"))
        self.assertIn("--x: its parameters do not fit", line)

    def test_malformed(self) -> None:
        """The error about an invalid description shows a valid one."""
        for description in ("", "7", "quic:7", "fd:3"):
            line = str(self.assertRaises(CannotServe, self.listener, description))
            self.assertIn(f"--listen {description!r}: ", line)
            self.assertIn("such as tcp:65432:interface=127.0.0.1", line)
            self.assertTrue(line.isprintable(), line)

    def test_impossible(self) -> None:
        """The error says why an endpoint cannot listen."""
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
        """An endpoint without a port, such as stdio:, is refused."""

        class Once:
            async def listen(self, factory: Any) -> object:
                return object()

        listener = EndpointListener("--listen 'once:'", MemoryReactor(), "tcp:0")

        class Failing:
            async def listen(self, factory: Any) -> object:
                raise TypeError("listen() missing 1 required positional argument")

        listener.endpoint = Failing()
        line = str(self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory()))))
        self.assertIn("--listen 'once:': cannot listen on this endpoint", line)
        listener.endpoint = Once()
        line = str(self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory()))))
        self.assertIn("--listen 'once:': cannot listen on this endpoint", line)

    def test_unix_in_use(self) -> None:
        """A UNIX socket on which another process listens is not replaced."""
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as other:
            path = os.path.join(directory, "socket")
            other.bind(path)
            other.listen()
            line = str(self.assertRaises(CannotServe, self.listen, f"unix:{path}:lockfile=0"))
            self.assertIn("address already in use", line)

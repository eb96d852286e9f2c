"""makeService: from the command line and the environment to a service."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.application.service import Application, IService, IServiceMaker
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.plugin import IPlugin, getPlugins
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from echod.clock import clock_of
from echod.daemon import faultlog, makeService, signals, tap
from echod.daemon import sdnotify as notify
from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.listeners import kinds, systemd
from echod.daemon.listeners import tls as secure
from echod.daemon.listeners.systemd import PassedListener
from echod.daemon.listeners.tcp import TCPListener
from echod.daemon.listeners.udp import UDPListener
from echod.daemon.listeners.unix import UNIXListener
from echod.daemon.options import Options
from echod.daemon.signals import STOP
from echod.daemon.tap import connection_limit
from echod.events import Opened
from echod.limits import descriptors_left
from tests.authority import Authority
from tests.reactors import reactor_of_kind

FIRST = 900
"""The first passed descriptor, in place of 3: no other descriptor in a test is as high."""


class MakeServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        for number in STOP:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        # The reactor is shared with other tests, which may run it.
        self.patch(reactor, "addSystemEventTrigger", lambda *_: None)
        self.log: list[LogEvent] = []
        for module in (tap, signals):
            self.patch(module.log, "observer", self.log.append)

    def make(self, *arguments: str) -> Any:
        options = Options()
        options.parseOptions(list(arguments))
        return makeService(options)

    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.log if event["log_level"] is LogLevel.warn]

    def pass_sockets(self, **names: int) -> None:
        """Pass a listening socket for each name, as systemd would."""
        sockets = [socket.socket() for _ in names]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        for number, sock in enumerate(sockets, FIRST):
            os.dup2(sock.fileno(), number)
            sock.close()
        self.patch(systemd, "FIRST", FIRST)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(names))
        os.environ["LISTEN_FDNAMES"] = ":".join(names)

    def listeners(self, service: Any) -> tuple[list[type], list[type]]:
        """Return the classes of the echo listeners and of the metrics listeners."""
        echo = service.echo.listeners
        others = [listener for ports in service.others for listener in ports.listeners]
        for listener in (*echo, *others):
            if isinstance(listener, PassedListener):
                for sock in listener.sockets:
                    sock.close()
        return [type(listener) for listener in echo], [type(listener) for listener in others]

    def test_service(self) -> None:
        """Twistd gets a service, with the limits of the command line."""
        made = self.make("--max-connections", "3", "--idle-timeout", "7", "--quiet")
        self.assertTrue(verifyObject(IService, made))
        self.assertEqual(made.factory.limits.total, 3)
        self.assertEqual(made.factory.timeouts.idle, 7)
        self.assertEqual(made.factory.timeouts.stall, 60)
        self.assertEqual(self.listeners(made), ([TCPListener], []))
        self.assertEqual(self.warnings(), [])

    def test_log_file(self) -> None:
        """Twistd logs with the observer of the log file, which SIGUSR1 reopens."""
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        options = Options()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        options.parent = ServerOptions()
        options.parent["logfile"] = os.path.join(directory.name, "log")
        options.parseOptions([])
        assert options.log_file is not None
        self.addCleanup(options.log_file.file.close)
        application: Any = Application("echod")
        makeService(options).setServiceParent(application)
        self.assertIs(application.getComponent(ILogObserver), options.log_file.observer)
        self.assertTrue(callable(signal.getsignal(signal.SIGUSR1)))
        plain: Any = Application("echod")
        self.make().setServiceParent(plain)
        self.assertIs(plain.getComponent(ILogObserver, None), None)

    def test_clock(self) -> None:
        """The whole reactor follows CLOCK_MONOTONIC."""
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        self.make()
        self.assertIs(clock_of(reactor), reactor)

    def test_more_than_the_descriptors(self) -> None:
        """--max-connections above the number of descriptors is lowered and logged."""
        self.patch(resource, "getrlimit", lambda which: (100, 100))
        made = self.make("--max-connections", "5000")
        self.assertEqual(made.connection_limit(), descriptors_left())
        [warning] = self.warnings()
        self.assertIn("--max-connections 5000: RLIMIT_NOFILE", warning)
        self.assertEqual(self.make().connection_limit(), descriptors_left())
        self.patch(resource, "getrlimit", lambda which: (30, 30))
        self.assertEqual(self.make("--metrics", "tcp:0").connection_limit(), 1)

    def test_more_than_select(self) -> None:
        """The warning names the lower of the two limits, select(2) or RLIMIT_NOFILE."""
        reactor = reactor_of_kind("select")
        for descriptors, limit in ((20_000, "select(2)"), (100, "RLIMIT_NOFILE")):
            self.patch(resource, "getrlimit", lambda which, most=descriptors: (most, most))
            self.assertEqual(connection_limit(5000, reactor, 0), descriptors_left(reactor))
            self.assertIn(f"--max-connections 5000: {limit} ", self.warnings()[-1])

    def test_endpoints(self) -> None:
        """--listen is parsed before the service starts."""
        made = self.make("--listen", "tcp:0", "--listen", "unix:/run/x")
        self.assertEqual(self.listeners(made), ([TCPListener, UNIXListener], []))
        self.assertRaises(CannotServe, self.make, "--listen", "tcp:http")

    def test_faulty(self) -> None:
        """--faulty opens a port with faults, and replaces the default port, but no other option."""
        faulty = ("--faulty", "tcp:0", "first 2: refuse; seed 7")
        for arguments, expected in (
            ((), [TCPListener]),
            (("--port", "0"), [TCPListener, TCPListener]),
            (("--listen", "unix:/run/x"), [UNIXListener, TCPListener]),
            (("--faulty", "udp:0", "drop"), [TCPListener, UDPListener]),
        ):
            made = self.make(*faulty, *arguments)
            self.assertEqual(self.listeners(made)[0], expected)
            self.assertTrue(made.notifier.faulty)
        self.assertFalse(self.make().notifier.faulty)

    def test_control(self) -> None:
        """--control serves the plans, and needs descriptors for its connections."""
        faulty = ("--faulty", "tcp:0", "refuse", "--control")
        left = descriptors_left()
        for endpoint, kind in (("tcp:0", TCPListener), ("unix:/x", UNIXListener)):
            made = self.make(*faulty, endpoint)
            self.assertEqual(self.listeners(made), ([TCPListener], [kind]))
            self.assertEqual(made.connection_limit(), left - 16)
        made = self.make(*faulty, "tcp:0", "--metrics", "tcp:0")
        self.assertEqual(self.listeners(made)[1], [TCPListener, TCPListener])
        self.assertEqual(made.connection_limit(), left - 32)
        error = self.assertRaises(WrongOption, self.make, *faulty, "tcp:0:interface=0.0.0.0")
        self.assertIn("control is served on loopback", error.why)

    def test_faults(self) -> None:
        """--faults opens the ports of a file, and replaces the default port, too."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name, "plans.toml")
        path.write_text('[[port]]\nlisten = "udp:0"\nrules = ["drop"]\nseed = 7\n')
        made = self.make("--faults", str(path), "--faulty", "tcp:0", "refuse")
        self.assertEqual(self.listeners(made)[0], [TCPListener, UDPListener])
        self.assertEqual([each.faults.plan.seed == 7 for each in made.echo.listeners][1:], [True])
        path.write_text('[[port]]\nlisten = "quic:0"\nrules = ["refuse"]\n')
        error = self.assertRaises(WrongOption, self.make, "--faults", str(path))
        self.assertIn("--faults 'quic:0': there is no endpoint 'quic'", error.why)

    def test_faulty_beside_passed(self) -> None:
        """A passed socket that no option names is served without faults."""
        self.pass_sockets(a=1, b=1)
        made = self.make("--faulty", "systemd:name=a", "refuse")
        self.assertEqual(self.listeners(made)[0], [PassedListener, PassedListener])
        self.assertEqual([bool(each.faults) for each in made.echo.listeners], [False, True])
        self.pass_sockets(a=1)
        made = self.make("--faulty", "systemd:name=a", "refuse")
        self.assertEqual(self.listeners(made)[0], [PassedListener])

    def test_plan_that_does_not_fit(self) -> None:
        """A rule that the port cannot have is refused in one line that names the option."""
        for endpoint, plan in (("tcp:0", "drop"), ("udp:0", "refuse"), ("unix:/x", "expired")):
            error = self.assertRaises(WrongOption, self.make, "--faulty", endpoint, plan)
            self.assertIn(f"--faulty '{endpoint}': ", error.why)

    def test_firings(self) -> None:
        """The observers of connections observe the firings, too."""
        made = self.make("--faulty", "tcp:0", "refuse")
        [listener] = made.echo.listeners
        self.patch(faultlog.log, "observer", self.log.append)
        [rule] = listener.faults.rules
        listener.faults.fire(rule, 1, 0, 0)
        self.assertEqual(self.log[-1]["event"], "faults")

    def test_passed(self) -> None:
        """Sockets that systemd passes replace the default port."""
        self.pass_sockets(a=1, b=2)
        made = self.make()
        self.assertEqual(len(made.echo.listeners[0].sockets), 2)
        self.assertEqual(self.listeners(made), ([PassedListener], []))
        self.assertEqual([name for name in os.environ if name.startswith("LISTEN_")], [])

    def test_passed_beside_options(self) -> None:
        """A passed socket is served beside the listeners of the command line."""
        for arguments, kind in (
            (["--port", "0"], TCPListener),
            (["--interface", "127.0.0.1"], TCPListener),
            (["--listen", "tcp:0"], TCPListener),
        ):
            self.pass_sockets(a=1)
            self.assertEqual(self.listeners(self.make(*arguments)), ([kind, PassedListener], []))

    def test_passed_by_name(self) -> None:
        """A --listen takes all sockets with a name; the others are served without it."""
        self.pass_sockets(a=1, b=2)
        made = self.make("--listen", "haproxy:systemd:name=b")
        [behind, rest] = made.echo.listeners
        self.assertTrue(behind.proxied)
        self.assertIsInstance(rest, PassedListener)
        for sock in (*behind.sockets, *rest.sockets):
            sock.close()

    def test_all_passed_by_name(self) -> None:
        """A --listen that takes all passed sockets replaces the default port."""
        self.pass_sockets(a=1)
        self.assertEqual(
            self.listeners(self.make("--listen", "systemd:name=a")), ([PassedListener], [])
        )

    def test_passed_for_tls(self) -> None:
        """A socket with the name tls that no option names is refused."""
        self.pass_sockets(tls=1)
        self.addCleanup(os.close, FIRST)
        error = self.assertRaises(CannotServe, self.make)
        self.assertIn(f"descriptor {FIRST} (tls) is for TLS, and no option says", str(error))
        self.assertIn("add --listen ssl:systemd:name=tls:privateKey=FILE:", str(error))

    def test_systemd_is_notified(self) -> None:
        """The notifier observes the connections where systemd has set NOTIFY_SOCKET."""
        self.assertEqual(self.make().notifier.address, "")
        self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": "/nowhere"})
        made = self.make()
        notified: list[Any] = []
        self.patch(notify.Notifier, "__call__", lambda notifier, event: notified.append(notifier))
        made.factory.observer(Opened(UNIXAddress(None)))
        self.assertEqual(notified, [made.notifier])

    def test_metrics(self) -> None:
        """Metrics are served at the endpoint of --metrics, and on passed sockets named metrics."""
        self.pass_sockets(metrics=1)
        made = self.make("--metrics", "tcp:0")
        self.assertEqual(self.listeners(made), ([TCPListener], [PassedListener, TCPListener]))
        left = descriptors_left()
        self.assertEqual(self.make("--metrics", "tcp:0").connection_limit(), left - 16)
        error = self.assertRaises(CannotServe, self.make, "--metrics", "tcp:x")
        self.assertIn("--metrics 'tcp:x': port takes ", str(error))
        made = self.make("--metrics", "unix:/run/x")
        self.assertEqual(self.listeners(made)[1], [UNIXListener])
        for description in ("haproxy:tcp:9862", "stdio:", "quic:7", "9862"):
            error = self.assertRaises(CannotServe, self.make, "--metrics", description)
            self.assertIn("metrics are served on tcp:, tcp6:, unix: or ssl:, ", str(error))
        for description in ("systemd:domain=INET:index=0", "SYSTEMD:domain=INET:index=0"):
            error = self.assertRaises(CannotServe, self.make, "--metrics", description)
            self.assertIn("with the name metrics (FileDescriptorName=)", str(error))

    def test_datagrams(self) -> None:
        """A datagram socket is served, unless its name is metrics."""
        for name, served in (("a", PassedListener), (systemd.METRICS, TCPListener)):
            self.pass_sockets(**{name: 1})
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                os.dup2(sock.fileno(), FIRST)
            self.assertEqual(self.listeners(self.make()), ([served], []))

    def test_listen_udp(self) -> None:
        """An endpoint that begins with udp: is a UDP port."""
        made = self.make("--listen", "udp:0", "--listen", "tcp:0", "--listen", "UDP:0")
        self.assertEqual(self.listeners(made)[0], [UDPListener, TCPListener, UDPListener])

    def test_broken_extra(self) -> None:
        """A missing module that no extra installs raises ModuleNotFoundError."""

        def missing(name: str) -> None:
            raise ModuleNotFoundError("broken", name="sys")

        self.patch(kinds, "import_module", missing)
        self.assertRaises(ModuleNotFoundError, self.make, "--metrics", "tcp:0")
        self.assertRaises(ModuleNotFoundError, self.make, "--listen", "ssl:0")

    def test_metrics_without_the_extra(self) -> None:
        """Without prometheus_client, --metrics is refused; the error names the extra."""
        with mock.patch.dict(sys.modules):
            for name in list(sys.modules):
                if name.startswith(("prometheus_client.", "echod.daemon.web", "echod.daemon.metr")):
                    del sys.modules[name]
            sys.modules["prometheus_client"] = None  # type: ignore[assignment]
            error = self.assertRaises(CannotServe, self.make, "--metrics", "tcp:0")
        self.assertRegex(str(error), "need prometheus-client, .* echod with its extra metrics$")

    def secure(self) -> str:
        """Return the description of a TLS port, after issuing its certificate."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        key, certificate = Authority(Path(directory.name)).issue("server")
        return f"ssl:0:privateKey={key}:certKey={certificate}"

    def test_tls(self) -> None:
        """ssl: makes a TLS listener of echod, with the handshake timeout of the option."""
        made = self.make("--listen", self.secure(), "--handshake-timeout", "3")
        self.assertEqual(self.listeners(made), ([TCPListener], []))
        self.assertTrue(made.echo.listeners[0].tls)
        self.assertEqual(made.factory.handshake_timeout, 3)

    def test_tls_without_the_extra(self) -> None:
        """Without pyOpenSSL or cryptography, ssl: is refused; the error names the extra."""
        for module, package in (("OpenSSL", "pyOpenSSL"), ("cryptography", "cryptography")):
            with mock.patch.dict(sys.modules):
                for name in ("echod.daemon.listeners.tls", "echod.certificates", "echod.tls"):
                    sys.modules.pop(name, None)
                sys.modules[module] = None  # type: ignore[assignment]
                error = self.assertRaises(CannotServe, self.make, "--listen", "ssl:0")
            self.assertRegex(str(error), f"needs {package}, .* echod with its extra tls$")

    def hangup(self, *arguments: str) -> list[Any]:
        """Make the service, send SIGHUP, and return the calls that reached the reactor."""
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        called: list[Any] = []
        self.patch(reactor, "callFromThread", lambda *call: called.append(call))
        self.made = self.make(*arguments)
        os.kill(os.getpid(), signal.SIGHUP)
        return called

    def test_hangup_with_tls(self) -> None:
        """With TLS, SIGHUP reloads the certificates and does not stop the service."""
        self.patch(secure.log, "observer", self.log.append)
        [[reload]] = self.hangup("--listen", self.secure())
        reload()
        self.assertEqual([event["event"] for event in self.log], ["reloaded"])

    def test_hangup(self) -> None:
        """Without TLS, SIGHUP stops the service; a second one ends the drain."""
        [[stop, name]] = self.hangup()
        self.assertEqual(name, "SIGHUP")
        self.assertEqual(self.made.drain_timeout, 10)
        with mock.patch("twisted.internet.reactor.stop", side_effect=ReactorNotRunning):
            stop(name)
        self.assertEqual(self.made.drain_timeout, 0)

    def test_plugin(self) -> None:
        """Twistd finds one plugin named echod, with these options and this service."""
        found = [
            plugin
            for plugin in getPlugins(IPlugin)
            if IServiceMaker.providedBy(plugin) and plugin.tapname == "echod"
        ]
        [plugin] = found
        self.assertIs(plugin.options, Options)
        self.assertIs(plugin.makeService, makeService)

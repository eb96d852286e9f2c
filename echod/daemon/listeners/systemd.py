"""Socket activation: what systemd passes in, served by what it is (sd_listen_fds(3)).

systemd keeps its own hold of them. So nothing here is shut down, renamed or
unlinked, and what waits to be accepted when this process stops is left for the
next one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.daemon.errors import CannotServe
from echod.daemon.logs import on_one_line
from echod.udp import DatagramPort, EchoDatagrams

FIRST: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

METRICS: Final = "metrics"
"""The name (FileDescriptorName= in systemd.socket(5)) of a socket for the metrics."""

TLS: Final = "tls"
"""The name of a socket for TLS, which is not served unless an option names it."""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

ENVIRONMENT: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

WHOLE: Final = re.compile("[1-9][0-9]{0,6}")  # open(2): there are never more

log = Logger(namespace="echod")


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """One descriptor, and the name that it was passed under."""

    descriptor: int
    name: str

    def __str__(self) -> str:
        return on_one_line(f"descriptor {self.descriptor} ({self.name})")


def pop_environment(
    environ: MutableMapping[str, str], names: Sequence[str], proc: str = "/proc/self/environ"
) -> dict[str, str]:
    """Remove variables from ``environ``, so that no child inherits them, and return them.

    The kernel's copy of the initial environment (proc(5)) is read too, because Twisted pops
    LISTEN_PID and LISTEN_FDS as soon as its ``systemd:`` endpoint is imported.
    """
    try:
        initial = os.fsdecode(Path(proc).read_bytes())
    except OSError:  # not readable if the interpreter has file capabilities
        initial = ""
    values = {**dict(each.partition("=")[::2] for each in initial.split("\0")), **environ}
    for name in names:
        environ.pop(name, None)
    return {name: values[name] for name in names if name in values}


def passed_sockets(environ: Mapping[str, str], pid: int) -> list[PassedSocket]:
    """Return what ``environ`` says was passed to process ``pid``: nothing, most often.

    :raises CannotServe: where the variables do not fit each other, or the process.
    """
    given = {name: environ[name] for name in ENVIRONMENT if name in environ}
    if not given:
        return []
    said = " ".join(f"{name}={value}" for name, value in given.items())
    if "LISTEN_PID" not in given or "LISTEN_FDS" not in given:
        raise CannotServe(
            f"{said}: LISTEN_PID and LISTEN_FDS come together (sd_listen_fds(3)); unset what is "
            "left over"
        )
    if given["LISTEN_PID"] != str(pid):
        raise CannotServe(
            f"{said}: the sockets are for another process than this one, {pid}: start twistd "
            "without a shell in between (exec), or unset these"
        )
    if not WHOLE.fullmatch(given["LISTEN_FDS"]):
        raise CannotServe(f"{said}: LISTEN_FDS is a whole number of 1 or more (sd_listen_fds(3))")
    count = int(given["LISTEN_FDS"])
    names = given["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in given else None
    if names is not None and len(names) != count:
        raise CannotServe(f"{said}: {len(names)} names for {count} descriptors")
    return [
        PassedSocket(FIRST + index, names[index] if names is not None else "unknown")
        for index in range(count)
    ]


def adopt(passed: Sequence[PassedSocket], *, datagrams: bool = False) -> list[socket.socket]:
    """Return the sockets behind descriptors, set to non-blocking and close-on-exec.

    :param datagrams: whether datagram sockets are wanted; where they are not, one is left
        out, and the log says so.
    :raises CannotServe: for a descriptor that cannot be served.
    """
    sockets = []
    for each in passed:
        try:
            sock = socket.socket(fileno=each.descriptor)
        except OSError as error:
            raise CannotServe(f"{each} is no socket: {str(error.strerror).lower()}") from error
        if sock.type == socket.SOCK_DGRAM and not datagrams:
            log.warn("{passed} is a datagram socket, and is not served", passed=str(each))
            sock.close()
            continue
        unfit = why_unfit(sock)
        if unfit is not None:
            sock.close()
            raise CannotServe(f"{each} {unfit}")
        sock.set_inheritable(False)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def take_named(
    name: str,
    passed: list[PassedSocket],
    reactor: Any,
    option: str,
    datagrams: EchoDatagrams | None = None,
) -> PassedListener:
    """Return a listener for all sockets of that name, and remove them from ``passed``.

    :param option: the option that names them, for error messages.
    :param datagrams: answers on UDP sockets; ``None``: there must be none.
    :raises CannotServe: where no socket has that name, or one of them cannot be served.
    """
    named = [each for each in passed if each.name == name]
    if not named:
        others = ", ".join(dict.fromkeys(each.name for each in passed)) or "none"
        raise CannotServe(
            f"{option}: systemd passed no socket with the name {name!r} (FileDescriptorName= in "
            f"systemd.socket(5)), or another option takes it; left: {others}"
        )
    sockets = adopt(named, datagrams=True)
    for each, sock in zip(named, sockets, strict=True):
        passed.remove(each)
        if sock.type == socket.SOCK_DGRAM and datagrams is None:
            for opened in sockets:
                opened.close()
            raise CannotServe(
                f"{option}: {each} is a datagram socket: give it a socket unit of its own"
            )
    return PassedListener(reactor, sockets, datagrams)


def why_unfit(sock: socket.socket) -> str | None:
    """Return why ``sock`` cannot be served; ``None``: it can."""
    if sock.type == socket.SOCK_DGRAM and sock.family in (socket.AF_INET, socket.AF_INET6):
        return None
    if sock.type != socket.SOCK_STREAM or sock.family not in FAMILIES:
        return "is no socket of TCP or UDP, and no UNIX stream socket"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: its unit needs ListenStream= and Accept=no (systemd.socket(5))"
    return None


class PassedListener:
    """Listens on sockets that are listening already.

    :param reactor: accepts.
    :param sockets: non-blocking. They stay open, to listen again after a stop.
    :param datagrams: answers, if a datagram socket is among them.
    """

    passed = True
    tls = False

    def __init__(
        self,
        reactor: Any,
        sockets: Sequence[socket.socket],
        datagrams: EchoDatagrams | None = None,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._datagrams = datagrams

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Accept from them."""
        return [self._accept(sock, factory) for sock in self._sockets]

    def _accept(self, sock: socket.socket, factory: IProtocolFactory) -> IListeningPort:
        port: Any
        if sock.type == socket.SOCK_DGRAM:
            port = DatagramPort(self._reactor, sock.dup(), cast(Any, self._datagrams))
            port.startListening()
        elif sock.family == socket.AF_UNIX:
            port = PassedUNIXPort(sock.dup(), factory, self._reactor)
            port.startListening()
        else:
            port = self._reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
        return cast(IListeningPort, port)


class UNIXTransport(unix.Server):
    """A UNIX connection that does not ask for descriptors: where the kernel has to take them.

    Before Linux 6.16 a peer can send them in any case. Twisted's own transport receives them, logs
    a line for each message, closes them one by one, and leaks the rest when a close fails. With a
    plain recv(2) the kernel closes them all.
    """

    doRead = tcp.Connection.doRead  # type: ignore[assignment]  # unix.Server has no types


class PassedUNIXPort(unix.Port):
    """A port on a UNIX socket whose file, and backlog, are somebody else's.

    Twisted's own, given such a socket, changes the file's mode and sets the backlog
    to 50 when it begins; when it ends it unlinks the file and shuts the socket down
    for everybody who holds it.
    """

    transport = UNIXTransport

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        name: str | bytes = sock.getsockname()  # bytes: an abstract name (unix(7))
        super().__init__(os.fsencode(name), factory, reactor=reactor)
        self.socket = sock
        self._shouldShutdown = False  # private to Twisted, which does the same for TCP

    def startListening(self) -> None:
        """Accept from the socket."""
        factory: Any = self.factory
        factory.doStart()
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        """Let go of the socket."""
        tcp.Port.connectionLost(self, reason)

"""Socket activation: choose a listener by socket type (sd_listen_fds(3)).

systemd holds the sockets too. So they are never shut down or unlinked, and connections that are
in the backlog when this process stops are left for the next one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from echod.addresses import on_one_line
from echod.daemon.errors import CannotServe
from echod.daemon.listeners.base import Listener
from echod.daemon.listeners.udp import datagram_port
from echod.daemon.listeners.unix import AdoptedUNIXPort
from echod.faults import DATAGRAM
from echod.udp import EchoDatagrams

FIRST: Final = 3
"""The first descriptor that systemd passes: SD_LISTEN_FDS_START in sd_listen_fds(3)."""

METRICS: Final = "metrics"
"""The name (FileDescriptorName= in systemd.socket(5)) of a socket for the metrics."""

TLS: Final = "tls"
"""The name of a socket for TLS. It is an error if no option names this socket."""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

ENVIRONMENT: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

COUNT: Final = re.compile("[1-9][0-9]{0,6}")  # no kernel allows more descriptors

log = Logger(namespace="echod")


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """A descriptor that systemd passed, and its name."""

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
    """Return the sockets that ``environ`` says were passed to process ``pid``, if any.

    :raises CannotServe: if the variables contradict each other, or are for another process.
    """
    given = {name: environ[name] for name in ENVIRONMENT if name in environ}
    if not given:
        return []
    as_given = " ".join(f"{name}={value}" for name, value in given.items())
    if "LISTEN_PID" not in given or "LISTEN_FDS" not in given:
        raise CannotServe(
            f"{as_given}: LISTEN_PID and LISTEN_FDS come together (sd_listen_fds(3)): unset the "
            "variables that are left over"
        )
    if given["LISTEN_PID"] != str(pid):
        raise CannotServe(
            f"{as_given}: the sockets are for another process than this one, {pid}: start twistd "
            "without a shell in between (exec), or unset these"
        )
    if not COUNT.fullmatch(given["LISTEN_FDS"]):
        raise CannotServe(
            f"{as_given}: LISTEN_FDS is a whole number of 1 or more (sd_listen_fds(3))"
        )
    count = int(given["LISTEN_FDS"])
    names = given["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in given else ["unknown"] * count
    if len(names) != count:
        raise CannotServe(f"{as_given}: {len(names)} names for {count} descriptors")
    return [PassedSocket(number, name) for number, name in enumerate(names, FIRST)]


def adopt(passed: Sequence[PassedSocket], *, datagrams: bool = False) -> list[socket.socket]:
    """Return the sockets of descriptors, set to non-blocking and close-on-exec.

    :param datagrams: whether datagram sockets are served; if not, they are skipped with a
        warning.
    :raises CannotServe: if a descriptor cannot be served.
    """
    sockets = []
    for each in passed:
        try:
            sock = socket.socket(fileno=each.descriptor)
        except OSError as error:
            raise CannotServe(f"{each} is not a socket: {str(error.strerror).lower()}") from error
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


def why_unfit(sock: socket.socket) -> str | None:
    """Return why ``sock`` cannot be served; ``None``: it can."""
    if sock.type == socket.SOCK_DGRAM and sock.family in (socket.AF_INET, socket.AF_INET6):
        return None
    if sock.type != socket.SOCK_STREAM or sock.family not in FAMILIES:
        return "is neither TCP, UDP nor a UNIX stream socket"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: its unit needs ListenStream= and Accept=no (systemd.socket(5))"
    return None


def take_named(
    name: str,
    passed: list[PassedSocket],
    reactor: Any,
    option: str,
    datagrams: EchoDatagrams | None = None,
) -> PassedListener:
    """Return a listener for all sockets of that name, and remove them from ``passed``.

    :param option: the option as typed, for error messages.
    :param datagrams: echoes on UDP sockets; ``None``: a UDP socket is an error.
    :raises CannotServe: if no socket has that name, or one of them cannot be served.
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
    return PassedListener(option, reactor, sockets, datagrams)


@dataclass
class PassedListener(Listener):
    """Listens on sockets that listen already.

    :param sockets: non-blocking. They stay open, so that the listener can listen again.
    :param datagrams: echoes on the datagram sockets among them.
    """

    reactor: Any
    sockets: Sequence[socket.socket]
    datagrams: EchoDatagrams | None = None
    held_by_systemd = True

    @property
    def serves(self) -> str:
        """What the ports serve.

        :raises CannotServe: if they serve streams and datagrams, which have different faults.
        """
        kinds = {sock.type for sock in self.sockets}
        if len(kinds) > 1:
            raise CannotServe(
                f"{self.option}: it names stream and datagram sockets, which have different "
                "faults: give them two names (FileDescriptorName=), and each name an option"
            )
        return DATAGRAM if kinds == {socket.SOCK_DGRAM} else super().serves

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        return [self._open(sock, factory) for sock in self.sockets]

    def _open(self, sock: socket.socket, factory: IProtocolFactory) -> IListeningPort:
        port: Any
        if sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
            port = self.reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
            return cast(IListeningPort, port)
        if sock.type == socket.SOCK_DGRAM:
            datagrams = cast(EchoDatagrams, self.datagrams)
            port = datagram_port(self.reactor, sock.dup(), datagrams, self.faults)
        else:
            port = AdoptedUNIXPort(sock.dup(), factory, self.reactor)
        port.startListening()
        return cast(IListeningPort, port)

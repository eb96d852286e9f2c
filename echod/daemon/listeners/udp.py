"""Listen on UDP: ``--listen udp:``."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorFDSet

from echod.daemon.listeners.base import IPListener
from echod.faultdatagrams import FaultyDatagramPort
from echod.faults import DATAGRAM, Faults
from echod.udp import DatagramPort, EchoDatagrams

NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
"""Flags for getaddrinfo(3): parse an address, and ask no name server."""


@dataclass
class UDPListener(IPListener):
    """Listens on one UDP port number, on each of several addresses.

    :param datagrams: echoes the datagrams. The factory given to :meth:`listen` is not used.
    """

    datagrams: EchoDatagrams
    protocol = "UDP"
    serves = DATAGRAM

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:  # noqa: ARG002
        sock = None
        try:
            # getaddrinfo() turns the link of a link-local address into its number.
            [(family, kind, _, _, address), *_] = socket.getaddrinfo(
                interface, port, type=socket.SOCK_DGRAM, flags=NUMERIC
            )
            sock = socket.socket(family, kind)
            sock.bind(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise CannotListenError(interface, port, error) from error
        opened = datagram_port(self.reactor, sock, self.datagrams, self.faults)
        opened.startListening()
        return opened


def datagram_port(
    reactor: IReactorFDSet, sock: socket.socket, datagrams: EchoDatagrams, faults: Faults | None
) -> DatagramPort:
    """Return a port that answers on ``sock``, as ``faults`` say if there are any."""
    if faults is None:
        return DatagramPort(reactor, sock, datagrams)
    return FaultyDatagramPort(reactor, sock, datagrams, faults)

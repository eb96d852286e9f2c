"""Types that a user's type checker infers: mypy checks this file, and nothing runs it."""

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from typing_extensions import assert_type

from echod import Drop, Dropped, EchoClient, EchoClientFactory
from echod.testing import MemoryNetwork, Peer


class PeerFactory:
    """Builds peers."""

    def buildProtocol(self, addr: object) -> Peer:
        """Return a peer."""
        return Peer()


def connected(network: MemoryNetwork, server: IPv4Address) -> None:
    """A connection in memory has the type of the protocol that the factory builds."""
    assert_type(network.connect(server, "192.0.2.2", EchoClientFactory()), EchoClient)
    assert_type(network.client_endpoint().connect(PeerFactory()), Deferred[Peer])


def dropped(event: Dropped) -> Drop:
    """Events of datagrams are public."""
    return event.drop

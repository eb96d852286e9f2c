"""An echo service (RFC 862) that never loses a byte.

To read it in one evening, in this order: ``protocol`` (one connection),
``factory`` (all of them), ``events`` (what they tell), ``kernel`` (what they ask),
``fastpath`` (the shortest way of a byte), ``arrival``, ``tls`` and ``proxy`` (what may come
before a connection), ``datagram`` (UDP), ``client`` (the other end), ``testing`` (both ends in
memory), then ``daemon`` (the service that ``twistd`` runs) and ``probe`` (``echod-client``, which
measures a path).
"""

from echod.client import EchoClient, EchoClientFactory, EchoIncomplete, EchoMismatch
from echod.events import (
    Closed,
    Drop,
    Dropped,
    Ending,
    Event,
    Observer,
    Opened,
    Reason,
    Refused,
    tell_each,
)
from echod.factory import EchoFactory
from echod.protocol import Echo
from echod.proxy import ProxyFactory

__all__ = [
    "Closed",
    "Drop",
    "Dropped",
    "Echo",
    "EchoClient",
    "EchoClientFactory",
    "EchoFactory",
    "EchoIncomplete",
    "EchoMismatch",
    "Ending",
    "Event",
    "Observer",
    "Opened",
    "ProxyFactory",
    "Reason",
    "Refused",
    "__version__",
    "tell_each",
]

# Stated here alone: setup.cfg reads it from the source, without importing Twisted.
__version__ = "0.1.0"
